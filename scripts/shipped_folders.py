"""Build step of setuptools, named in setup.cfg: puts what ships besides code into the package.

Recipes, their data and accelerate configurations are folders at the top of the repository, where
readers look for them. A wheel has them in rahf/shipped/. An editable installation needs no copy.
"""

from pathlib import Path

from setuptools.command.build_py import build_py

SHIPPED = (
    "recipes/*.json",
    "recipes/*/*.yaml",
    "recipes/data/README.md",
    "recipes/data/*.jsonl",
    "recipes/data/tone/*.jsonl",
    "accelerate_configs/*.yaml",
)
SOURCE = "scripts/shipped_folders.py"
"""This file, which a source distribution needs too."""


def shipped_files() -> list[str]:
    """Return paths from the top of the repository, where setuptools works."""
    return sorted(path.as_posix() for pattern in SHIPPED for path in Path().glob(pattern))


class BuildWithShippedFolders(build_py):
    """Builds the package with copies of the shipped files, and lists them where it lists its own.

    Overrides the methods of the documented protocol `setuptools.command.build.SubCommand`.
    """

    def run(self) -> None:
        super().run()
        for source, built in self._copies().items():
            self.mkpath(str(Path(built).parent))
            self.copy_file(source, built, preserve_mode=False)

    def get_source_files(self) -> list[str]:
        return [*super().get_source_files(), *shipped_files(), SOURCE]

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        return [*super().get_outputs(include_bytecode), *self._copies().values()]

    def get_output_mapping(self) -> dict[str, str]:
        return super().get_output_mapping() | {
            built: source for source, built in self._copies().items()
        }

    def _copies(self) -> dict[str, str]:
        """Return {file: its copy in the build}; an editable installation has no copies."""
        if self.editable_mode:
            return {}
        folder = Path(self.build_lib) / "rahf" / "shipped"
        return {path: str(folder / path) for path in shipped_files()}
