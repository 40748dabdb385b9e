"""`python -m sweep.report STUDY`: rebuild the report of a study."""

import sweep.report.imbalance
from core.command_line import parse_command
from core.errors import user_errors
from sweep.report.imbalance import is_of_imbalance
from sweep.report.page import Report, report


def main() -> None:
    """Parse the command line and rebuild the report."""
    with user_errors():
        cfg = parse_command(Report, "python -m sweep.report", ("runs/study", "runs/study --measure jaccard"))
        if is_of_imbalance(cfg.folder):
            page = sweep.report.imbalance.report(cfg.folder, cfg.draws, cfg.seed)
        else:
            page = report(cfg.folder, cfg.measure, cfg.draws, cfg.seed)
        print(f"report:  {page.resolve().as_uri()}")


if __name__ == "__main__":
    main()
