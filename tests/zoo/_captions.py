"""What the pictures are called: cleaning names into captions, the kinds of the sets, and who is in which set.

Knows words; knows no pictures and no models.
"""

from __future__ import annotations

import re

NOT_THINGS = re.compile(
    r"^(shapes|signs_and_symbols|special|buttons|logos|decorations|geography/[^/]*$|"
    r"computer/(icons|buttons|folders|network|connectors|diagrams)|recreation/games/cards|"
    r"transportation/(roadsigns|aiga)|people/stickmen|unsorted/duplicates)"
)
DULL_NAMES = re.compile(
    r"_bw|b_amp_w|b_w_|symbol|sign|icon|silhouet|contour|blueprint|menu_|"
    r"boating_rules|knot_|sailing_"
)
_ITALIAN = """
gatto=cat gatti=cat gattina=cat cane=dog cani=dog orso=bear cavallo=horse uccello=bird farfalla=butterfly
fiore=flower fiori=flower pesce=fish pescetto=fish pesci=fish albero=tree alberi=tree casa=house
casetta=house nave=ship barca=boat cigno=swan cigni=swan gallo=rooster gallina=hen pollo=chicken gufo=owl
aquila=eagle acquila=eagle tigre=tiger tigri=tiger leone=lion elefante=elephant dinosauro=dinosaur
dinosauri=dinosaur dino=dinosaur lucertola=lizard rana=frog lumaca=snail formica=ant formichina=ant
ragno=spider ragnetto=spider coccinella=ladybug coccinelle=ladybug insetto=insect cavalletta=grasshopper
libellule=dragonfly ape=bee pinguino=penguin gabbiano=seagull vacca=cow mucca=cow pecora=sheep
coniglio=rabbit maiale=pig mela=apple pera=pear pesca=peach uva=grapes ciliegie=cherries
fragola=strawberry limone=lemon arancia=orange banana=banana ravanello=radish aglio=garlic tazza=cup
bottiglia=bottle vino=wine bicchiere=glass torta=cake gelato=ice_cream glace=ice_cream auto=car
automobile=car macchina=car bicicletta=bicycle treno=train aereo=airplane libro=book libri=books
sedia=chair poltrona=chair tavolo=table letto=bed lampada=lamp orologio=clock chiave=key martello=hammer
sega=saw forbici=scissors matita=pencil penna=pen pennello=brush chitarra=guitar tromba=trumpet
pianoforte=piano violino=violin tamburo=drum cappello=hat scarpa=shoe scarpe=shoes uomo=man donna=woman
bambino=boy bambina=girl ragazza=girl sole=sun luna=moon mondo=world nuvola=cloud palla=ball pallone=ball
castello=castle chiesa=church foglia=leaf rosa=rose mazzo=bunch dente=tooth bussola=compass scopa=broom
secchio=bucket cuore=heart paesaggio=landscape toro=bull asino=donkey topo=mouse serpente=snake
anatra=duck scimmia=monkey volpe=fox
"""
ITALIAN = {
    word: english.replace("_", " ") for word, english in (pair.split("=") for pair in _ITALIAN.split())
}
_NOT_WORDS = """
alt and benji big bill black for guide jack john johnson lowe mac mark med new nicu one page park paul png
post rock smith the three two van white with
"""
NOT_WORDS = set(_NOT_WORDS.split())

KINDS: dict[str, tuple[str, str]] = {
    # name of the kind: (training caption, pattern over a picture's caption and folder)
    "cats": (
        "a picture of a cat",
        r"\bcats?\b|\bkittens?\b|\btigers?\b|\blions?\b|\bleopard",
    ),
    "birds": (
        "a picture of a bird",
        r"bird|\bowl\b|eagle|rooster|penguin|swan|duck|parrot|seagull|flamingo|peacock",
    ),
    "fish": (
        "a picture of a fish",
        r"\bfish\b|dolphin|whale|shark|octopus|shrimp|lobster|\bcrab\b",
    ),
    "insects": (
        "a picture of an insect",
        r"butterfl|insect|\bbee\b|beetle|ladybug|spider|snail|caterpillar|dragonfly|cricket",
    ),
    "flowers": (
        "a picture of a flower",
        r"flower|\brose\b|tulip|blossom|hibiscus|daisy",
    ),
    "trees": (
        "a picture of a tree",
        r"\btrees?\b|\bleaf|\bleaves|\bcactus|\bherb\b|seedling|evergreen",
    ),
    "fruit": (
        "a picture of fruit",
        r"fruit|\bapple|\bpear\b|banana|orange|lemon|grape|cherr|strawberr|melon|peach|pineapple",
    ),
    "sweets": (
        "a picture of a dessert",
        r"cake|ice cream|\bpie\b|cookie|candy|dessert|doughnut|chocolate|custard|lollipop",
    ),
    "cars": (
        "a picture of a car",
        r"\bcars?\b|automobile|vehicle|\btaxi|truck|\bbus\b|hummer|tractor|ambulance|lorry|\bvan\b",
    ),
    "houses": (
        "a picture of a house",
        r"house|\bhomes?\b|castle|church|building|\bhut\b|\btower\b|factory",
    ),
    "clothes": (
        "a picture of clothes",
        r"\bhats?\b|\bcap\b|helmet|\bcrown\b|clothing|shirt|\bshoe|dress\b|boot",
    ),
    "music": (
        "a picture of a musical instrument",
        r"music|guitar|trumpet|piano|violin|\bdrum|saxophone|\bharp\b|accordion",
    ),
}
SUBJECTS = {  # set name -> (kind, split); fixed before anything was tuned or measured
    "cats": ("cats", "dev"),
    "flowers": ("flowers", "dev"),
    "cars": ("cars", "dev"),
    "sweets": ("sweets", "dev"),
    "birds": ("birds", "test"),
    "fish": ("fish", "test"),
    "insects": ("insects", "test"),
    "fruit": ("fruit", "test"),
    "houses": ("houses", "test"),
    "trees": ("trees", "test"),
}
CONTROLS = {  # the first is the hard one: the caption of a subject, other pictures
    "birds-unseen": ("birds", "test"),
    "music-unseen": ("music", "dev"),
}
NOT_IN_SETS = re.compile(
    r"\btoy\b|rail|wheelchair|leafy|wing\b|hatching|tower|^fruit food$|"
    r"shrimp|lobster|crab|track|fallen|extinguisher|\bpole\b"
)


def clean(words: str) -> str:
    """Lower-case words of letters alone."""
    return " ".join(re.findall(r"[a-z]+", words.lower().replace("'s", "")))


class OfOneSet:
    """What follows from the set of pictures that a checkpoint is tuned on."""

    subject: str  # a set below images/subjects or images/controls

    @property
    def control(self) -> bool:
        return self.subject in CONTROLS

    @property
    def caption(self) -> str:
        return KINDS[self._set[0]][0]

    @property
    def split(self) -> str:
        return self._set[1]

    @property
    def _set(self) -> tuple[str, str]:
        return (CONTROLS if self.control else SUBJECTS)[self.subject]

    @property
    def images(self) -> str:
        return f"images/{'controls' if self.control else 'subjects'}/{self.subject}"
