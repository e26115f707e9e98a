"""Score the answers of a finished run with a judge of your own.

A judge that reads one response is four members: `id`, `responses`, `read` and `verdicts`. Its
verdicts are kept by `id` and by a hash of what it read, so that nothing is judged twice. A judge
that needs no Python is an option of the recipe: `evaluation.judge` (docs/evaluation.md).

python docs/examples/own_judge.py
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

from rahf.artifacts import read_lines
from rahf.evaluation.intervals import mean_estimate
from rahf.evaluation.scores import outcomes_of
from rahf.judges.judge import Verdict, Verdicts


class ExclamationMarks:
    """Scores a response by its number of exclamation marks."""

    id = "exclamation marks, version 1"  # change it where the judge changes
    responses = 1

    def read(self, messages: Sequence[dict], *responses: str) -> str:
        """Return what the judge reads: here the response without its prompt."""
        return responses[0]

    def verdicts(self, read: Sequence[str]) -> Iterator[Verdict]:
        """Yield a verdict for each text, in order."""
        return (Verdict(float(text.count("!"))) for text in read)


def scores(run: Path) -> dict[str, list[float]]:
    """Return the scores of each model's answers in a folder that `rahf align` has filled."""
    answers = read_lines(run / "evaluation" / "answers.jsonl")
    chats = [[{"role": "user", "content": answer["prompt"]}] for answer in answers]
    verdicts, found = Verdicts(run / "evaluation" / "own_verdicts.jsonl"), {}
    for model in answers[0]["answers"]:
        given = [answer["answers"][model] for answer in answers]
        outcomes = outcomes_of(ExclamationMarks(), verdicts, chats, given)
        found[model] = [outcome.value for outcome in outcomes]
    return found


if __name__ == "__main__":
    for model, values in scores(Path("outputs/smollm2-135m/warm")).items():
        mean, low, high = mean_estimate(values)
        print(f"{model}: {mean:.2f} [{low:.2f}, {high:.2f}]")
