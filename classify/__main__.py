"""`python -m classify --task acl --plane sagittal [--init FILE]`: train a classifier of exams, score with intervals."""

from core.errors import user_errors


def main() -> None:
    """Parse the command line, train, score and print the scores."""
    with user_errors():
        from classify.config import EXAMPLES, presets_for
        from engine.command_line import parse, with_data

        cfg = parse(presets_for, __doc__ or "", examples=EXAMPLES)
        from classify import planes, training
        from classify.tables import print_result
        from encoders.build import require_image_size

        # before the synthetic exams are made, which takes long
        require_image_size(cfg.encoder, cfg.norm, cfg.image_size, cfg.clip_frames)
        result = (planes if cfg.planes else training).run(with_data(cfg))
        if "threshold" in result:  # only the main process scores
            print_result(result, cfg)


if __name__ == "__main__":
    main()
