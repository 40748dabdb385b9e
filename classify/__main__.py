"""`python -m classify --task acl --plane sagittal [--init FILE]`: a classifier of exams, scored with intervals."""

import sys

from data.errors import user_errors


def main() -> None:
    """Parse the command line, train, score and say what was found."""
    with user_errors():
        from classify.config import recipes_for
        from engine.config import parse

        cfg = parse(recipes_for(sys.argv[1:]), __doc__ or "")
        from classify.report import print_result
        from classify.training import run

        result = run(cfg)
        if "threshold" in result:
            print_result(result, cfg)


if __name__ == "__main__":
    main()
