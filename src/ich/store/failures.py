"""Calls of an object store, repeated if they fail, and their errors in plain words.

Messages never contain text of the server or the library, which may echo credentials.
"""

import os
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from ich.errors import UserError

TRIES = 5
PAUSE = 0.5  # seconds before the second try, then twice as long each time
LIBRARIES = ("aiobotocore", "aiohttp", "botocore", "gcsfs", "google", "requests", "s3fs", "urllib3")
Result = TypeVar("Result")


class Damaged(UserError):
    """An object or record in the store has wrong content."""


class Failed(Exception):
    """A call that may succeed when it is repeated, with the reason."""

    again = True


class Refused(Failed):
    again = False


class Missing(Failed):
    """There is no such file or bucket."""


class Wrong(Failed):
    """The content is wrong."""


@contextmanager
def translated() -> Iterator[None]:
    """Raise Failed for an error of the file system, without its text, which may contain credentials."""
    try:
        yield
    except FileNotFoundError:
        raise Missing from None
    except PermissionError:
        raise Refused("permission denied") from None
    except Exception as error:
        kind = type(error)
        if not isinstance(error, OSError) and kind.__module__.partition(".")[0] not in LIBRARIES:
            raise
        response = getattr(error.__cause__ or error, "response", None)
        status = response.get("ResponseMetadata", {}).get("HTTPStatusCode") if isinstance(response, dict) else None
        if "Credentials" in kind.__name__ or status in (401, 403):
            raise Refused("permission denied") from None
        number = getattr(error, "errno", None)
        reason = os.strerror(number) if isinstance(number, int) else kind.__name__
        raise Failed(f"HTTP status {status}" if isinstance(status, int) else reason) from None


def repeated(url: str, verb: str, name: str, call: Callable[[], Result]) -> Result:
    """Return the result of `call`, which is repeated if it fails. Raises UserError if it fails to the end."""
    failure = Failed()
    for trial in range(TRIES):
        try:
            return call()
        except Failed as failed:
            failure = failed
            if not failed.again:
                break
        if trial < TRIES - 1:
            time.sleep(PAUSE * 2**trial * random.uniform(0.5, 1))
    place, rerun = f"{url}: cannot {verb} {name}", "rerun the same command; finished transfers are kept"
    if isinstance(failure, Wrong):
        raise Damaged(f"{place}: {failure}. Delete it in the store, then push it again where the file is") from None
    if isinstance(failure, Missing):
        raise UserError(f"{place}: there is no such bucket or folder. Create it or change store.remote") from None
    if isinstance(failure, Refused):
        raise UserError(f"{place}: {failure}. Check the credentials in the environment and their rights") from None
    raise UserError(f"{place}: {failure}. Check the network, then {rerun}") from None
