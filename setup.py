"""What pyproject.toml cannot say: on a package index README.md has no files beside it, so there its links begin at the repository."""
import re
from configparser import ConfigParser
from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).parent
settings = ConfigParser(interpolation=None)
settings.read(ROOT / "settings.ini", encoding="utf-8")
home = settings["DEFAULT"]["git_url"]
text = (ROOT / "README.md").read_text(encoding="utf-8")
text = re.sub(r"(!\[[^\]]*\]\()(?!\w+:)", rf"\g<1>{home}/raw/main/", text)
text = re.sub(r"\]\((?!\w+:|#)", f"]({home}/blob/main/", text)
setup(long_description=text, long_description_content_type="text/markdown")
