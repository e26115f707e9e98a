"""What ended a command, as one line: the file's name, what is wrong, what to do.

Errors of rahf's own checks are such lines already. Those of other libraries rarely name a file;
the name is then looked for in the calls that the error came through.
"""

import dis
import errno
import io
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType, TracebackType

import rahf
from rahf.recipe.fields import OptionError
from rahf.report.escaping import one_line, printable

PACKAGE = Path(rahf.__file__).parent

FULL_DISK = "no space left on the disk; free some and give the same command again"
NO_NETWORK = "check the network, the address and the token, then give the same command again"

CURES = {
    errno.ENOENT: "give the name of one that is there",
    errno.EEXIST: "it is a file, and a folder is to be there: give another name, or move it",
    errno.ENOTDIR: "a part of the name is a file, not a folder: give another name",
    errno.EISDIR: "it is a folder, and a file is to be there: give another name",
    errno.EACCES: "give another place, or change the permissions",
    errno.EROFS: "give another place, which can be written",
    errno.ENAMETOOLONG: "give a shorter name",
}
"""What to do about an error of the system that names a file."""

KINDS = {
    "SafetensorError": "not a complete safetensors file ({text}); fetch or write it again",
    "UnpicklingError": "holds pickled objects, which are never loaded; give safetensors",
    "JSONDecodeError": "not JSON ({text}); fetch or write it again",
    "UnicodeDecodeError": "not UTF-8 text ({text}); save it as UTF-8",
    "UnicodeEncodeError": "text that UTF-8 cannot hold ({text}); remove these characters",
    "RecursionError": "nested too deeply to be read; flatten it",
    "TemplateError": "the chat template fails ({text}); mend it or give another chat_template",
    "YAMLError": "not YAML ({text}); mend the file",
    "OutOfMemoryError": "out of memory ({text}); lower the batch size or the length of a row",
    "MemoryError": "out of memory; lower the batch size or the length of a row",
    "ImportError": "{text}; install what is missing with pip",
    "URLError": f"{{text}}; {NO_NETWORK}",
    "HTTPError": f"{{text}}; {NO_NETWORK}",
    "HTTPException": f"the server's answer cannot be read ({{text}}); {NO_NETWORK}",
    "RequestException": f"{{text}}; {NO_NETWORK}",
    "InvalidURL": "{text}; give an address such as https://host/v1",
    "EntryNotFoundError": "{text}; give a folder or repository that holds it",
}
"""Names of exception classes, also of their parents, and what they mean to a user. Names, because
the libraries that define these classes are loaded by few commands."""

ANY = "cannot be used ({kind}: {text}); fetch or write it again, --traceback shows more"
OURS = "{kind}: {text}; a mistake of rahf or of a library, --traceback shows where"


def message_of(error: BaseException) -> str:
    """Return the one line, or the list of a recipe's problems."""
    if isinstance(error, OptionError):
        return printable(str(error))
    if (isinstance(error, OSError) and error.errno == errno.ENOSPC) or _out_of_space(error):
        return _with_file(error, FULL_DISK, getattr(error, "filename", None))
    if isinstance(error, OSError) and error.strerror:
        # Without the number that the system gives an error: "Permission denied: x".
        name = error.filename
        line = f"{error.strerror}: {name}" if name else error.strerror
        cure = CURES.get(error.errno or 0) if name else None
        return one_line(f"{line}; {cure}" if cure else line)
    frames = list(_frames(error.__traceback__))
    if isinstance(error, ValueError) and frames and _raised_by_us(*frames[-1]):
        return one_line(str(error), longest=4000)
    return _foreign(error)


def _foreign(error: BaseException) -> str:
    """Return the line of another library's error."""
    text = str(error).strip()
    kind = type(error).__name__
    names = [parent.__name__ for parent in type(error).__mro__]
    form = next((KINDS[name] for name in names if name in KINDS), None)
    if "StrictDataclassFieldValidationError" in names:
        return _wrong_type(error)
    if form is None and error.__cause__ is not None and not isinstance(error, ValueError | OSError):
        return message_of(error.__cause__)
    if form is not None:
        return _with_file(error, form.format(text=one_line(text, 300)))
    if isinstance(error, ValueError | OSError):
        return _with_file(error, text)
    line = {"kind": kind, "text": one_line(text, 300)}
    file = None if _mistake_of_ours(error) else file_of(error)
    return one_line(f"{file}: {ANY.format(**line)}" if file else OURS.format(**line))


def _wrong_type(error: BaseException) -> str:
    """Return the line of a value whose type the configuration of a model does not take."""
    text = str(error.__cause__ or error).partition(". Errors:")[0]
    text = text.replace("NoneType", "null").replace("None", "null").removeprefix("Field ")
    types = text.replace("doesn't match any type in", "expected one of")
    types = re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", types)
    folder = file_of(error)
    if folder and Path(folder, "config.json").is_file():
        folder = f"{folder}/config.json"
    return one_line(f"{folder or 'config.json'}: {types}; correct the value")


def _with_file(error: BaseException, text: str, file: str | None = None) -> str:
    file = file or file_of(error)
    # A command adds the name that it was given as a note, where no file of that name exists.
    named = [*getattr(error, "__notes__", []), *([file] if file else [])]
    missing = next((name for name in named if str(name) not in text), None)
    return one_line(f"{missing}: {text}" if missing else text)


def file_of(error: BaseException) -> str | None:
    """Return the file, or else the folder, that the innermost call that has one was given."""
    frames = {frame.f_code: frame for frame in _chain(error)}  # of a recursion, the innermost
    for frame in reversed(frames.values()):
        values = _values(frame)
        opened = [value.name for value in values if _is_file(value)]
        paths = [str(path) for path in (*opened, *filter(_is_path, values)) if _exists(path)]
        if paths:
            return next((path for path in paths if Path(path).is_file()), paths[0])
    return None


def _values(frame: FrameType) -> list[object]:
    """Return the local variables of a call."""
    return list(frame.f_locals.values())


def _is_file(value: object) -> bool:
    return isinstance(value, io.IOBase) and _is_path(getattr(value, "name", None))


def _is_path(value: object) -> bool:
    return isinstance(value, str | Path) and 1 < len(str(value)) < 1000


def _exists(value: str | Path) -> bool:
    try:
        path = Path(value)
        whole = path.resolve()
        return (
            path.exists()
            and path.suffix not in (".py", ".so")
            and whole != Path.cwd()
            and not whole.is_relative_to(sys.prefix)
            and not whole.is_relative_to(PACKAGE)
        )
    except (OSError, ValueError, RuntimeError):
        return False


def _chain(error: BaseException) -> Iterator[FrameType]:
    """Yield the calls of the error, outermost first, then those of the error it arose from."""
    cause = error.__cause__ or error.__context__
    for one in filter(None, (error, cause)):
        yield from (frame for frame, _ in _frames(one.__traceback__))


def _frames(trace: TracebackType | None) -> Iterator[tuple[FrameType, int]]:
    while trace is not None:
        yield trace.tb_frame, trace.tb_lasti
        trace = trace.tb_next


def _mistake_of_ours(error: BaseException) -> bool:
    """Return whether code of rahf met an error of programming, which no file is to blame for."""
    innermost = list(_frames(error.__traceback__))[-1][0]
    ours = Path(innermost.f_code.co_filename).is_relative_to(PACKAGE)
    return ours and isinstance(error, TypeError | AttributeError | NameError | AssertionError)


def _raised_by_us(frame: FrameType, instruction: int) -> bool:
    """Return whether a `raise` of rahf raised it, not a function such as int() that it called."""
    code = frame.f_code
    ours = Path(code.co_filename).is_relative_to(PACKAGE)
    return ours and code.co_code[instruction] == dis.opmap["RAISE_VARARGS"]


def _out_of_space(error: BaseException) -> bool:
    text = str(error)
    return "No space left on device" in text or "os error 28" in text
