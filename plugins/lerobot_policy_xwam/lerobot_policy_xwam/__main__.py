"""python -m lerobot_policy_xwam BUNDLE FOLDER: write the folder that LeRobot's commands take as --policy.path."""

from __future__ import annotations

import sys
from pathlib import Path

from xwam_ft import UserError
from xwam_ft.errors import EXIT_CODE
from xwam_ft.locks import sole_folder


def main(words: list[str]) -> int:
    """0, or 2 with one sentence."""
    from lerobot_policy_xwam.modeling_xwam import XwamPolicy

    if len(words) != 2:
        print("usage: python -m lerobot_policy_xwam BUNDLE FOLDER", file=sys.stderr)
        return EXIT_CODE
    bundle, out = words[0], Path(words[1])
    try:
        if out.exists():
            raise UserError("exists already", out, "give a folder that is not there")
        policy = XwamPolicy.from_pretrained(bundle)
        with sole_folder(out, "writing a LeRobot policy") as folder:
            policy.save_pretrained(folder)
    except UserError as error:
        print(error, file=sys.stderr)
        return EXIT_CODE
    print(f"{out}: for LeRobot's commands, --policy.path={out}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
