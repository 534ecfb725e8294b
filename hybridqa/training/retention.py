"""Questions that have nothing to do with any document, for a module to leave the answers to as they are.

Two lists, written for this project: one to train with and another to judge by. Knows nothing about models. Invariant:
no question is in both lists, so that a module cannot have learned what it is judged by.
"""

from __future__ import annotations

from collections.abc import Sequence

from hybridqa.answering.prompt import PromptBuilder
from hybridqa.training.packing import Example
from hybridqa.training.pairs import Pair
from hybridqa.training.wordings import WORDINGS, closed_example

TRAINING = (
    ("What is the capital of Norway?", "The capital of Norway is Oslo."),
    ("Who painted the Mona Lisa?", "Leonardo da Vinci painted the Mona Lisa."),
    ("How many legs does a spider have?", "A spider has eight legs."),
    ("What do plants take from the air to grow?", "Plants take in carbon dioxide."),
    ("When did the Second World War end?", "It ended in 1945."),
    ("What is 12 times 12?", "12 times 12 is 144."),
    ("Which planet is the largest in the solar system?", "Jupiter is the largest planet."),
    ("What is the chemical symbol of gold?", "The symbol of gold is Au."),
    ("Who wrote Romeo and Juliet?", "William Shakespeare wrote it."),
    ("Why is the sky blue?", "Air scatters the blue part of sunlight more than the red part."),
    ("What is a synonym of happy?", "Glad is a synonym of happy."),
    ("How do I boil an egg?", "Put the egg into boiling water for about eight minutes, then cool it under cold water."),
    ("Hello! How are you today?", "Hello! I'm doing well, thank you. How can I help you?"),
    ("Thanks for your help.", "You're welcome! Let me know if there is anything else I can do."),
    ("Can you tell me a short joke?", "Why did the scarecrow win a prize? Because he was outstanding in his field."),
    ("I feel tired this morning.", "I'm sorry to hear that. A short walk and a glass of water may help."),
    ("Write one sentence about the sea.", "The sea rolled in under a grey sky and covered the sand."),
    ("Translate 'good night' into French.", "'Good night' is 'bonne nuit' in French."),
    ("Which is heavier, a kilogram of iron or a kilogram of wool?", "They weigh the same."),
    ("Complete the sentence: The early bird", "catches the worm."),
    ("What does a Python list's append method do?", "It adds an item to the end of the list."),
    ("Give me three colours.", "Red, green and blue."),
    ("What comes after Wednesday?", "Thursday comes after Wednesday."),
    ("Is the Earth flat?", "No, the Earth is nearly a sphere."),
    ("¿Cuál es la capital de Perú?", "La capital de Perú es Lima."),
    ("¿Cómo te llamas?", "Soy un asistente virtual. ¿En qué puedo ayudarte?"),
    ("Quelle est la couleur de la neige ?", "La neige est blanche."),
    ("Combien de jours y a-t-il dans une semaine ?", "Il y a sept jours dans une semaine."),
    ("Was ist die Hauptstadt von Österreich?", "Die Hauptstadt von Österreich ist Wien."),
    ("Wie viele Monate hat ein Jahr?", "Ein Jahr hat zwölf Monate."),
    ("Qual è il fiume più lungo d'Italia?", "Il fiume più lungo d'Italia è il Po."),
    ("日本の首都はどこですか？", "日本の首都は東京です。"),
)
JUDGING = (
    ("What is the capital of Canada?", "The capital of Canada is Ottawa."),
    ("Who developed the theory of general relativity?", "Albert Einstein developed it."),
    ("How many sides does a hexagon have?", "A hexagon has six sides."),
    ("At what temperature does water freeze?", "Water freezes at 0 degrees Celsius."),
    ("In which year did people first walk on the Moon?", "People first walked on the Moon in 1969."),
    ("What is 15 plus 27?", "15 plus 27 is 42."),
    ("What is the largest ocean on Earth?", "The Pacific Ocean is the largest."),
    ("Which gas do people need to breathe?", "People need oxygen."),
    ("Who wrote Don Quixote?", "Miguel de Cervantes wrote it."),
    ("Why do leaves change colour in autumn?", "They lose their chlorophyll, so other colours become visible."),
    ("What is the opposite of difficult?", "The opposite of difficult is easy."),
    ("How can I make tea?", "Pour boiling water over the tea leaves and let them steep for a few minutes."),
    ("Good evening! What can you do for me?", "Good evening! I can answer questions and help you write."),
    ("Goodbye!", "Goodbye! Have a nice day."),
    ("Please recommend a hobby for rainy days.", "You could try drawing, cooking or learning to play an instrument."),
    ("Write one sentence about a mountain.", "The mountain stood silent above the clouds."),
    ("What does HTML stand for?", "HTML stands for HyperText Markup Language."),
    ("Name two fruits.", "Apples and bananas."),
    ("Do penguins fly?", "No, penguins cannot fly, but they swim very well."),
    ("¿Cuántas horas tiene un día?", "Un día tiene veinticuatro horas."),
    ("Quelle est la capitale de l'Italie ?", "La capitale de l'Italie est Rome."),
    ("Welche Farbe hat eine reife Zitrone?", "Eine reife Zitrone ist gelb."),
    ("Qual é a capital de Portugal?", "A capital de Portugal é Lisboa."),
    ("中国的首都是哪里？", "中国的首都是北京。"),
)


def retention_examples(
    prompts: PromptBuilder, questions: Sequence[tuple[str, str]], *, first: int = 0
) -> list[list[Example]]:
    """The questions with their answers, in lists whose prompts begin alike; keys begin at `first`."""
    lists: list[list[Example]] = [[] for _ in WORDINGS]
    for place, (question, answer) in enumerate(questions):
        wording = place % len(WORDINGS)
        pair = Pair(question, answer, "retention", 0, -1)
        lists[wording].append(closed_example(prompts, pair, first + place, wording))
    return [examples for examples in lists if examples]


def mixed(general: Sequence[tuple[str, str]], others: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """General questions and as many of `others`, questions about other documents, as make half of all at most."""
    return [*general, *others[: len(general)]]
