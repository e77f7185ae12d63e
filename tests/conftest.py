"Local data, where the checkout lies beside it, is offered to every test and to the notebooks that tests start."
import os
from pathlib import Path

beside = Path(__file__).resolve().parent.parent.parent / "shared" / "data"
if "DALS_DATA_DIR" not in os.environ and beside.is_dir():
    os.environ["DALS_DATA_DIR"] = str(beside)
