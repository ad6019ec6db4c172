"""SQuAD's official layout with a handful of rows."""

import json

CONTEXT = "The Amazon, in South America, carries 20% of all river water. It is the longest river but one."
ROWS = [  # question, answers
    ("Where is the Amazon?", ["in South America", "South America"]),
    ("How much water?", ["20%"]),
    ("What is it?", ["the longest river but one"]),
    ("Which sea is it?", []),
]


def write(folder, version):
    """train and dev of "v1.1" (the rows with an answer) or "v2.0"."""
    qas = [
        {
            "id": f"q{i}",
            "question": question,
            "answers": [{"text": text, "answer_start": CONTEXT.index(text)} for text in answers],
            **({"is_impossible": not answers} if version == "v2.0" else {}),
        }
        for i, (question, answers) in enumerate(ROWS)
        if answers or version == "v2.0"
    ]
    content = {"version": version, "data": [{"title": "Amazon", "paragraphs": [{"context": CONTEXT, "qas": qas}]}]}
    for split in ("train", "dev"):
        (folder / f"{split}-{version}.json").write_text(json.dumps(content))
    return folder
