"""`python -m annotate first|next|collect`: choose slices to label, and bring the labels back."""

import sys
from importlib import import_module

from core.errors import UserError, user_errors
from core.nearest import nearest
from core.program import program

COMMANDS = {
    "first": "choose the first subjects and slices to label, without any label",
    "next": "choose the next slices by what a trained U-Net is unsure of, with its masks to correct",
    "collect": "bring corrected masks back, as a data set to train on",
}


def main() -> None:
    """Run the command that the first argument names."""
    with user_errors():
        name, *arguments = sys.argv[1:] or ["--help"]
        if name in ("-h", "--help"):
            print(f"usage: {program('annotate')} COMMAND [OPTIONS]\n")
            print("commands (--help after a command lists its options):")
            print("\n".join(f"  {command:<9}{what}" for command, what in COMMANDS.items()))
            return
        if name not in COMMANDS:
            near = nearest(name, COMMANDS)
            hint = f"did you mean {near}?" if near else f"choose {', '.join(COMMANDS)}"
            raise UserError(f"annotate has no command {name!r}: {hint}")
        import_module(f"annotate.{name}").main(arguments)


if __name__ == "__main__":
    main()
