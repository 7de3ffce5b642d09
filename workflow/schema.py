"""Write ``profiles/profile.schema.json``: every key of a profile for editors, which then complete, explain and check it.

python -m workflow.schema
"""

import json

from lib.run.files import PROJECT, short, write_text_atomically
from lib.run.profile import Profile

PATH = PROJECT / "profiles" / "profile.schema.json"


def text() -> str:
    """Return the JSON Schema of a profile."""
    return json.dumps(Profile.model_json_schema(), indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    write_text_atomically(PATH, text())
    print(short(PATH))
