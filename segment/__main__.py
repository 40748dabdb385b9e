"""`python -m segment --labelled-fraction 0.02 [--init FILE]`: train a U-Net on few labels, score whole volumes."""

from core.errors import user_errors


def main() -> None:
    """Parse the command line, train, score and print the scores."""
    with user_errors():
        from engine.command_line import parse, with_data
        from segment.config import EXAMPLES, PRESETS

        cfg = parse(lambda early: PRESETS, __doc__ or "", examples=EXAMPLES)
        if not cfg.unlabelled:
            cfg.refuse_settings_of_unlabelled()
        from segment.tables import print_result
        from segment.training import run

        result = run(with_data(cfg))
        if "dice" in result:  # only the main process scores
            print_result(result, cfg.run_folder, cfg.data.data_root)


if __name__ == "__main__":
    main()
