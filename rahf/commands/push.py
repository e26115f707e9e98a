"""`rahf push`: an adapter or directions to the Hugging Face Hub."""

import argparse
from pathlib import Path


def add_options(parser: argparse.ArgumentParser) -> None:
    option = parser.add_argument
    option("source", metavar="FOLDER", type=Path, help="output_dir of a run, or directions")
    option("repo_id", metavar="USER/NAME", help="repository, made if there is none")
    option("--public", action="store_true", help="make the repository public (default: private)")
    option("--base", metavar="NAME", help="the base's name on the Hub, where it was a folder")
    option("--dry_run", action="store_true", help="show the files and the card, send nothing")
    option("--endpoint", metavar="URL", help="another Hub (also: HF_ENDPOINT)")


def run(options: argparse.Namespace) -> int:
    from rahf.export.hub import collect, not_being_made, push

    with not_being_made(options.source):
        upload = collect(options.source, options.repo_id, options.base)
        for name, size in upload.sizes().items():
            print(f"{size:>12,}  {name}")
        if upload.unchecked is not None:
            print(upload.unchecked)
        if options.dry_run:
            print(f"\n{upload.card()}\nnothing was sent (--dry_run)")
            return 0
        private = not options.public
        address = push(upload, options.repo_id, private=private, endpoint=options.endpoint)
    print(f"sent: {address} ({'public' if options.public else 'private'})")
    return 0
