"""`python -m sweep.forecast --results DIR --target 0.85`: how many labels a target score needs."""

from core.command_line import parse_command
from core.errors import user_errors
from sweep.report.forecast import Forecast, run

EXAMPLES = ("--results runs/study --target 0.85", "--results runs/study --target 0.9 --at 75 --more 25")


def main() -> None:
    """Parse the command line and print the forecast."""
    with user_errors():
        run(parse_command(Forecast, "python -m sweep.forecast", EXAMPLES))


if __name__ == "__main__":
    main()
