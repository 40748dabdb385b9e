"""`python -m sweep`: a study of scores against numbers of labels, and its report."""

import shlex
import signal
import sys

from core.errors import user_errors
from core.program import program


def main() -> None:
    """Parse the command line, run the study and print where its report is."""
    with user_errors():
        from engine.command_line import parse, with_data
        from sweep.imbalance.config import ImbalanceConfig
        from sweep.study.config import EXAMPLES, presets_for

        cfg = with_data(parse(presets_for, __doc__ or "", examples=EXAMPLES))
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # runs are saved, as after Ctrl-C
        try:
            if isinstance(cfg, ImbalanceConfig):
                import sweep.imbalance.run

                print(f"report:  {sweep.imbalance.run.run(cfg).resolve().as_uri()}")
                return
            from sweep.study.run import run

            report = run(cfg)
        except KeyboardInterrupt:
            print(f"stopped; the same command continues the study in {cfg.out}", file=sys.stderr)
            raise SystemExit(130) from None
        if report:
            print(f"report:  {report.resolve().as_uri()}")
            print(f"next:    {program('sweep.forecast')} --results {shlex.quote(str(cfg.out))} --target 0.85")


if __name__ == "__main__":
    main()
