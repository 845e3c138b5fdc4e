"""Start and stop a real S3 server on loopback, from Debian's packages of Ceph.

python -m scripts.s3_server start --folder /tmp/s3     # then: set -a; . /tmp/s3/env
python -m scripts.s3_server status --folder /tmp/s3
python -m scripts.s3_server stop --folder /tmp/s3
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from scripts.s3_server.processes import S3ServerError
from scripts.s3_server.server import missing_daemons, start, stop


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m scripts.s3_server", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("action", choices=["start", "stop", "status"])
    parser.add_argument("--folder", type=Path, required=True, help="everything of the server lies there")
    parser.add_argument("--port", type=int, default=0, help="of the S3 service; by default one that is free")
    arguments = parser.parse_args()
    try:
        if arguments.action == "start":
            server = start(arguments.folder, port=arguments.port)
            print(f"{server.endpoint_url} answers; its credentials are in {arguments.folder / 'env'}")
        elif arguments.action == "stop":
            print(f"{stop(arguments.folder)} processes ended")
        elif missing := missing_daemons(arguments.folder):
            print(f"not running: {', '.join(missing)}")
            return 1
        else:
            print("running")
    except S3ServerError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
