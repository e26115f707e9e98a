"""Methods of other libraries' classes that this package overrides, and attributes that it sets:
checked to exist, so that a release that renames one is an error and not a method never called.
"""

from collections.abc import Callable
from importlib.metadata import version
from typing import Any, TypeVar

Method = TypeVar("Method", bound=Callable[..., Any])


def overrides(owner: type) -> Callable[[Method], Method]:
    """Return a decorator for a method that takes the place of `owner`'s method of the same name.

    Raises:
        ImportError: `owner` has no such method in the installed release.
    """

    def checked(method: Method) -> Method:
        if not callable(getattr(owner, method.__name__, None)):
            raise ImportError(_missing(owner, method.__name__))
        vars(method)["overridden"] = owner
        return method

    return checked


def set_existing(target: Any, name: str, value: Any) -> None:
    """Set an attribute that another library reads.

    Raises:
        AttributeError: `target` has no such attribute in the installed release.
    """
    if not hasattr(target, name):
        raise AttributeError(_missing(type(target), name))
    setattr(target, name, value)


def _missing(owner: type, name: str) -> str:
    package = owner.__module__.split(".")[0]
    return (
        f"{owner.__name__} of {package} {version(package)} has no {name}, which rahf relies on: "
        f"install a release of {package} that rahf was tested with (constraints.txt), or a newer "
        "rahf."
    )
