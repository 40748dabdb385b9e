"""`python -m pretrain --stage generalist|specialist|hierarchical`: pretrain an encoder on unlabelled images."""

from core.errors import user_errors


def main() -> None:
    """Parse the command line, run the stage and print the next command."""
    with user_errors():
        from engine.command_line import parse, with_data
        from pretrain.config import EXAMPLES, presets_for

        cfg = parse(presets_for, __doc__ or "", examples=EXAMPLES)
        from core.terminal import terminal
        from pretrain.methods.build import require_method
        from pretrain.run_page import next_command, result_table
        from pretrain.stages import require_network, run

        # before the synthetic data are made, which takes long; a generalist stage reads no data set
        require_method(cfg)
        require_network(cfg)
        result = run(cfg if cfg.stage == "generalist" else with_data(cfg))
        terminal().print(result_table(cfg, result))
        print(f"encoder: {result['encoder']}")
        if "unet" in result:
            print(f"U-Net:   {result['unet']}")
        print(f"next:    {next_command(cfg, result)}")


if __name__ == "__main__":
    main()
