"""`python -m pretrain --stage generalist|specialist|hierarchical`: pretrain an encoder on unlabelled images."""

import shlex

from core.errors import user_errors


def main() -> None:
    """Parse the command line, run the stage and print the next command."""
    with user_errors():
        from engine.command_line import parse, with_data
        from pretrain.config import EXAMPLES, presets_for

        cfg = parse(presets_for, __doc__ or "", examples=EXAMPLES)
        from pretrain.stages import run

        # a generalist stage reads no data set: do not make the synthetic one
        result = run(cfg if cfg.stage == "generalist" else with_data(cfg))
        print(f"encoder: {result['encoder']}")
        if "unet" in result:
            print(f"U-Net:   {result['unet']}")
        following = ["python", "-m", "segment", "--labelled-fraction", "0.02"]
        if cfg.on_exams:
            following = ["python", "-m", "classify", "--encoder", cfg.encoder]
            following += ["--plane", cfg.data.plane] if cfg.data.dataset == "mrnet" else []
        if cfg.on_images:
            following = ["python", "-m", "classify.probe"]
        following += ["--init", result.get("unet", result["encoder"])]
        following += ["--dataset", cfg.data.dataset] if cfg.data.dataset not in ("acdc", "mrnet") else []
        following += ["--data-root", str(cfg.data.data_root)] if cfg.data.data_root else []
        for name in ("task", "split_seed", "labels", "subject_pattern", "splits_file"):  # the subjects and their split
            value = getattr(cfg.data, name, None)
            if value != getattr(type(cfg.data)(), name, None):
                following += [f"--{name.replace('_', '-')}", str(value)]
        print(f"next:    {shlex.join(following)}")


if __name__ == "__main__":
    main()
