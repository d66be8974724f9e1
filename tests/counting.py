"""A teacher that writes down what it is asked."""

from myna.errors import TeacherError


class Counting:
    """A teacher that writes down every question: (kind, prefix) or (draw, prefix, ...)."""

    def __init__(self, teacher, fail=()):
        self.spec, self.k, self._teacher = teacher.spec, teacher.k, teacher
        self.calls, self._fail = [], set(fail)

    @property
    def asked(self):
        return [question for call in self.calls for question in call]

    def _note(self, questions):
        self.calls.append(questions)
        if self._fail & set(questions):
            raise TeacherError("the line is dead")

    def laws(self, prefixes):
        self._note([("law", row) for row in prefixes.rows()])
        return self._teacher.laws(prefixes)

    def top_laws(self, prefixes):
        self._note([("top", row) for row in prefixes.rows()])
        return self._teacher.top_laws(prefixes)

    def complete(self, prefixes, count, *, stream, max_tokens=None, first_draw=0):
        draws = range(first_draw, first_draw + count)
        self._note([("draw", r, stream, max_tokens, i) for r in prefixes.rows() for i in draws])
        return self._teacher.complete(
            prefixes, count, stream=stream, max_tokens=max_tokens, first_draw=first_draw
        )
