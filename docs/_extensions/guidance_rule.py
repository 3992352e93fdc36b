"""Shows the constructors of guidance rules: dataclasses by their decorator."""

from typing import Any

import griffe


class GuidanceRules(griffe.Extension):
    """Gives each class decorated with ``guidance_rule`` its ``__init__``."""

    def on_class(self, *, cls: griffe.Class, **kwargs: Any) -> None:
        """Called once the members of a class are known."""
        names = {str(decorator.value) for decorator in cls.decorators}
        if "guidance_rule" not in names or "__init__" in cls.members:
            return
        keyword = griffe.ParameterKind.positional_or_keyword
        parameters = [griffe.Parameter("self", kind=keyword)]
        for field in cls.members.values():
            if not isinstance(field, griffe.Attribute) or "property" in field.labels:
                continue
            if field.annotation is not None:
                parameters.append(
                    griffe.Parameter(
                        field.name,
                        annotation=field.annotation,
                        kind=keyword,
                        default=_default(field.value),
                    )
                )
        init = griffe.Function(
            "__init__",
            lineno=0,
            endlineno=0,
            parameters=griffe.Parameters(*parameters),
            parent=cls,
        )
        cls.set_member("__init__", init)


def _default(value: Any) -> Any:
    """What follows ``=`` in the signature: ``static_field(default=x)`` is ``x``."""
    if isinstance(value, griffe.ExprCall) and str(value.function) == "static_field":
        for argument in value.arguments:
            if getattr(argument, "name", None) == "default":
                return argument.value
        return None
    return value
