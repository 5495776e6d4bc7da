"""``peach-trl NAME ...`` runs the recipe of that name, as ``python recipes/NAME.py ...`` does in a checkout."""

from __future__ import annotations

import ast
import runpy
import sys

from peach_trl.config import did_you_mean
from peach_trl.utils.installed import recipes


def main() -> None:
    """Runs the recipe that the command line names first, with what follows as its own command line."""
    known, arguments = recipes(), sys.argv[1:]
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_usage())
    elif arguments[0] == "--version":
        from peach_trl import __version__

        print(__version__)
    elif arguments[0] not in known:
        print(f"peach-trl {arguments[0]}: no such recipe; {did_you_mean(arguments[0], known)}", file=sys.stderr)
        sys.exit(2)
    else:
        script = str(known[arguments[0]])
        sys.argv = [script, *arguments[1:]]
        sys.path.insert(0, str(known[arguments[0]].parent))  # as python does for a script
        runpy.run_path(script, run_name="__main__")


def _usage() -> str:
    lines = ["peach-trl NAME [key=value ...]; peach-trl NAME --help says which keys there are", ""]
    for name, path in recipes().items():
        docstring = ast.get_docstring(ast.parse(path.read_text())) or ""
        lines.append(f"  {name:<12}{docstring.splitlines()[0]}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
