"""Takes additions to the contract into what is frozen of it: ``make contract``.

What would break a deployed peer is not taken in: it is named, and nothing is written.
"""

import sys
from pathlib import Path

from .frozen import IMAGE, PROTOS, breaking_changes, built_image, described_files, pool_of
from .listing import LISTING, listing
from .vectors import VECTORS, lacking_rows, message_types, read_vectors, write_vectors


def renew(protos: Path, folder: Path) -> list[str]:
    """Renew image, listing and vectors in a folder; return what would break a peer, if anything does."""
    image = folder / IMAGE.name
    breaking = breaking_changes(protos, image)
    if breaking:
        return breaking
    files = described_files(protos)
    types = list(message_types(pool_of(files), [file.name for file in files]))
    rows = read_vectors(folder / VECTORS.name)
    write_vectors([*rows, *lacking_rows(types, rows)], folder / VECTORS.name)
    folder.joinpath(LISTING.name).write_text(listing(files), encoding="utf-8")
    image.write_bytes(built_image(protos))
    return []


def main() -> int:
    """Run the command and return its exit code."""
    breaking = renew(PROTOS, IMAGE.parent)
    if breaking:
        print("\n".join(["this would break a peer of v1, and is not taken in:", *breaking]), file=sys.stderr)
        return 1
    print("v1 is frozen as the contract is now")
    return 0


if __name__ == "__main__":
    sys.exit(main())
