"Made-up records that do not contradict themselves, and how long many inputs may take."
from dataclasses import replace


def retold(template, scores, diverged=False, **changes):
    "The same run with other test accuracies, four digits of them, and with everything that follows from those"
    scores = [round(score, 4) for score in scores]
    rows = [{**row, "test_accuracy": score} for row, score in zip(template.history, scores, strict=False)]
    first = {level: next((row["epoch"] for row in rows if row["test_accuracy"] >= float(level)), None) for level in template.epochs_to}
    return replace(template, history=rows, best_accuracy=max(scores, default=None), final_accuracy=scores[-1] if scores else None,
                   epochs_to=first, diverged=diverged, data={**template.data, "test": 1_000_000}, **changes)


def assert_no_wait(waits: list[float]) -> None:
    "None of many inputs took more than 30 seconds; on a machine that is busy with something else, than the same multiple of their median"
    usual = sorted(waits)[len(waits) // 2]
    assert max(waits) < 30 * max(1, usual), f"{max(waits):.0f} s, where half of the inputs take less than {usual:.1f}"
