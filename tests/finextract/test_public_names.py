"""The names of the package, each in a fresh interpreter."""

import subprocess
import sys


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_every_public_name_is_a_class_or_a_function_even_after_its_module_was_imported() -> None:
    code = (
        "import finextract.extract, finextract.audit, finextract.membership, finextract\n"
        "from types import ModuleType\n"
        "print([n for n in finextract.__all__ if isinstance(getattr(finextract, n), ModuleType)])"
    )
    assert run(code) == "[]"


def test_what_needs_no_torch_is_imported_without_it() -> None:
    code = (
        "import sys, finextract, finextract.metadata.captions, finextract.weights.files, finextract.support\n"
        "import finextract.significance, finextract.images, finextract.text, finextract.archive\n"
        "import finextract.framing, finextract.cli\n"
        "finextract.Caption, finextract.caption_for, finextract.Picture, finextract.picture_of\n"
        "print('torch' in sys.modules)"
    )
    assert run(code) == "False"
