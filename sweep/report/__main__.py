"""`python -m sweep.report STUDY`: rebuild the report of a study."""

from core.command_line import parse_command
from core.errors import user_errors
from sweep.report.page import Report, report


def main() -> None:
    """Parse the command line and rebuild the report."""
    with user_errors():
        cfg = parse_command(Report, "python -m sweep.report", ("runs/study", "runs/study --measure jaccard"))
        print(f"report:  {report(cfg.folder, cfg.measure, cfg.draws, cfg.seed).resolve().as_uri()}")


if __name__ == "__main__":
    main()
