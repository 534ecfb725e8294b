"""Small made-up documents with questions whose answers stand in them, as JSON lines."""

from __future__ import annotations

import json
from pathlib import Path

NAMES = ("Tarnwick", "Oskvar", "Lowmoor", "Veldmoor", "Brookline", "Pellworth", "Harlow", "Emberton")
BUILDERS = ("Maren Holt", "Anna Voss", "Ivo Karst", "Lena Brandt", "Otto Falk", "Nils Aker", "Rosa Quint", "Petra Lund")
RIVERS = ("Ebb", "Sorne", "Lathe", "Mirn", "Oder", "Welk", "Tarn", "Isel")


def text_of(place: int) -> str:
    """The document about a town."""
    name, builder, river = NAMES[place], BUILDERS[place], RIVERS[place]
    return (
        f"The town of {name} lies on the river {river}. {builder} built the bridge of {name} in {1901 + place}. "
        f"The bridge of {name} cost {10 + place},000 crowns. The market of {name} is held on {2 + place} May. "
        f"The museum of {name} keeps {300 + 7 * place} clay lamps. "
        f"The mayor of {name} is called {builder[::-1].title()}."
    )


def write_towns(folder: Path, count: int = 6, unanswerable: bool = True) -> tuple[Path, Path]:
    """Documents and questions about so many towns."""
    docs, questions = folder / "towns.docs.jsonl", folder / "towns.questions.jsonl"
    with docs.open("w") as file:
        for place in range(count):
            entry = {"doc_id": f"town-{place}", "title": NAMES[place], "text": text_of(place)}
            file.write(json.dumps(entry) + "\n")
    with questions.open("w") as file:
        for place in range(count):
            name = NAMES[place]
            asked = [
                (f"On which river does {name} lie?", [RIVERS[place]]),
                (f"Who built the bridge of {name}?", [BUILDERS[place]]),
                (f"When was the bridge of {name} built?", [str(1901 + place)]),
                (f"What did the bridge of {name} cost?", [f"{10 + place},000 crowns"]),
                (f"How many clay lamps does the museum of {name} keep?", [str(300 + 7 * place)]),
            ]
            for number, (question, answers) in enumerate(asked):
                entry = {"qid": f"{place}-{number}", "question": question, "answers": answers}
                file.write(json.dumps({**entry, "doc_ids": [f"town-{place}"]}) + "\n")
            if unanswerable:
                entry = {"qid": f"{place}-x", "question": f"Who painted the church of {name}?", "answers": []}
                file.write(json.dumps({**entry, "doc_ids": [f"town-{place}"], "unanswerable": True}) + "\n")
    return docs, questions
