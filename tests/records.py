"Made-up records that do not contradict themselves."
from dataclasses import replace


def retold(template, scores, diverged=False, **changes):
    "The same run with other test accuracies, four digits of them, and with everything that follows from those"
    scores = [round(score, 4) for score in scores]
    rows = [{**row, "test_accuracy": score} for row, score in zip(template.history, scores, strict=False)]
    first = {level: next((row["epoch"] for row in rows if row["test_accuracy"] >= float(level)), None) for level in template.epochs_to}
    return replace(template, history=rows, best_accuracy=max(scores, default=None), final_accuracy=scores[-1] if scores else None,
                   epochs_to=first, diverged=diverged, data={**template.data, "test": 1_000_000}, **changes)
