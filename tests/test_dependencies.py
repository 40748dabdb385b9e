"""The distributions that `pyproject.toml` declares are those that the product imports."""

import ast
import re
import sys
import tomllib

from forking import REPOSITORY

PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
PACKAGES = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]

OTHER_NAMES = {
    "PIL": "pillow",
    "cv2": "opencv-python-headless",
    "mlflow": "mlflow-skinny",
    "sklearn": "scikit-learn",
    "yaml": "pyyaml",
}
"""Distributions that are not called like the module they install."""

NEEDED_BY_OTHERS = {"pyarrow", "python-gdcm", "tensorboard"}
"""Never imported here: pandas reads Parquet, pydicom JPEG Lossless and torch.utils.tensorboard writes with them."""

OPTIONAL = [each for extra in PROJECT["project"]["optional-dependencies"].values() for each in extra]
"""Requirements of the extras."""


def imported_modules() -> set[str]:
    """Top-level names of all absolute imports in the product, those within functions included."""
    names: set[str] = set()
    for file in (file for package in PACKAGES for file in (REPOSITORY / package).rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                names.add(node.module.partition(".")[0])
    return names


def test_what_is_imported_is_declared_and_the_other_way_round():
    third_party = imported_modules() - set(sys.stdlib_module_names) - set(PACKAGES)
    imported = {OTHER_NAMES.get(name, name.replace("_", "-")) for name in third_party}
    declared, optional = (
        {re.match(r"[\w-]+", requirement)[0] for requirement in requirements}
        for requirements in (PROJECT["project"]["dependencies"], OPTIONAL)
    )
    assert imported - declared - optional == set()
    assert declared - imported == NEEDED_BY_OTHERS
