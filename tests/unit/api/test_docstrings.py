"""The docstrings of what `import transfer` exports are complete. tests/system/test_docs.py runs their examples."""

import ast
import dataclasses
import inspect
from itertools import pairwise

from tests.public_face import classes, examples, exported, functions, sections


def test_a_function_documents_all_arguments_and_whether_it_returns_something():
    found, expected = {}, {}
    for name, function in functions():
        signature, documented = inspect.signature(function), sections(function.__doc__)
        found[name] = list(documented.get("Args", ())), "Returns" in documented
        arguments = [each for each in signature.parameters if each != "self"]
        expected[name] = arguments, signature.return_annotation not in {"None", None}
    assert found == expected


def test_a_class_documents_what_it_is_made_of():
    found, expected = {}, {}
    for name, kind in classes():
        if dataclasses.is_dataclass(kind):
            expected[name] = [field.name for field in dataclasses.fields(kind)]
            found[name] = fields_with_docstring(kind)
        elif not hasattr(kind, "model_fields"):  # tests/unit/config/test_reference.py has those of the configuration.
            expected[name] = list(inspect.signature(kind).parameters)
            documented = sections(kind.__doc__) | sections(kind.__init__.__doc__ or "")
            found[name] = list(documented.get("Args", ()))
    assert found == expected


def test_every_export_has_an_example():
    assert [name for name, found in exported() if not examples(found)] == []


def fields_with_docstring(kind):
    """Names of the fields of a class that are followed by a docstring."""
    body = ast.parse(inspect.getsource(kind)).body[0].body
    return [
        field.target.id
        for field, following in pairwise(body)
        if isinstance(field, ast.AnnAssign) and isinstance(following, ast.Expr)
    ]
