"""moto's own server. Usage: moto_server.py PORT [PAUSE_MS]

With a pause, so long lies between its check of a put's condition and the write: what else happens at once gets in
between. moto holds no lock over the two, so that this happens without a pause as well, but in few races of a hundred.
"""

import sys
import time

from moto.s3.models import S3Backend
from moto.server import main


def pause_before_writes(seconds):
    put_object = S3Backend.put_object

    def paused(self, *args, **kwargs):
        time.sleep(seconds)
        return put_object(self, *args, **kwargs)

    S3Backend.put_object = paused


if __name__ == "__main__":
    if len(sys.argv) > 2:
        pause_before_writes(int(sys.argv[2]) / 1000)
    main(["-H", "127.0.0.1", "-p", sys.argv[1]])
