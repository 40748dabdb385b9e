"""`python -m sweep`: what is the next label worth, and does pretraining save any? A study and its report."""

import signal
import sys

from data.errors import user_errors


def main() -> None:
    """Parse the command line, run the study and say where the report is."""
    with user_errors():
        from engine.config import parse
        from sweep.config import recipes_for

        cfg = parse(recipes_for(sys.argv[1:]), __doc__ or "")
        from sweep.study import run

        signal.signal(signal.SIGTERM, signal.default_int_handler)  # runs are saved, as after Ctrl-C
        try:
            report = run(cfg)
        except KeyboardInterrupt:
            print(f"stopped; the same command continues the study in {cfg.out}", file=sys.stderr)
            raise SystemExit(130) from None
        if report:
            print(f"report:  {report.resolve().as_uri()}")
            print(f"next:    python -m sweep.forecast --results {cfg.out} --target 0.85")


if __name__ == "__main__":
    main()
