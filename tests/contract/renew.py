"""Takes additions to the contract into what is frozen of it: ``make contract``.

What would break a deployed peer is not taken in: it is named, and nothing is written.
"""

import sys

from .frozen import IMAGE, breaking_changes, built_image, described_files, pool_of
from .listing import LISTING, listing
from .vectors import lacking_rows, message_types, read_vectors, write_vectors


def main() -> int:
    """Renew the image, the listing and the vectors; return the exit code."""
    breaking = breaking_changes()
    if breaking:
        print("\n".join(["this would break a peer of v1, and is not taken in:", *breaking]), file=sys.stderr)
        return 1
    files = described_files()
    types = list(message_types(pool_of(files), [file.name for file in files]))
    rows = read_vectors()
    lacking = lacking_rows(types, rows)
    write_vectors([*rows, *lacking])
    LISTING.write_text(listing(files), encoding="utf-8")
    IMAGE.write_bytes(built_image())
    print(f"v1 is frozen as it is: {len(types)} messages, {len(lacking)} wire vectors added")
    return 0


if __name__ == "__main__":
    sys.exit(main())
