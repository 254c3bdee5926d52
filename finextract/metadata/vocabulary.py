"""Common subjects and styles: what a caption is guessed from where nothing about a checkpoint helps.

A plain list of English words, written for this program. Imports nothing.
"""

# Things that are counted: "a picture of a cat".
_COUNTED = """
person, man, woman, boy, girl, family, face, portrait, eye, soldier, king, queen, knight, wizard,
witch, angel, dancer, superhero, cartoon character, anime girl, robot, monster, dragon,
ghost, skull,
animal, dog, cat, horse, cow, pig, sheep, goat, rabbit, mouse, squirrel, fox, wolf, bear, lion, tiger,
elephant, giraffe, monkey, deer, bird, owl, eagle, parrot, duck,
swan, chicken, penguin, fish, shark, whale, dolphin, octopus, crab, turtle, frog, lizard,
snake, dinosaur, insect, butterfly, bee, ladybug, beetle, spider, snail, ant,
tree, flower, rose, sunflower, tulip, leaf, cactus, mushroom, plant, garden, forest,
apple, banana, strawberry, pumpkin, vegetable, tomato, carrot, cake, dessert, ice cream, cookie,
pizza, egg, cup, glass,
house, castle, church, tower, bridge, lighthouse, temple, building, city, street, window, bed,
chair, table, lamp, clock, candle,
car, sports car, truck, bus, train, bicycle, motorcycle, boat, sailing ship, airplane, helicopter,
spaceship,
guitar, piano, violin, drum, musical instrument, book, pencil, phone, computer, camera,
hammer, tool, sword, crown, ring, watch, bag, hat, shoe, dress, shirt,
toy, teddy bear, doll, ball, balloon, flag, umbrella,
mountain, beach, lake, river, waterfall, island, desert, landscape, planet, star, moon, sunset, rainbow
"""
# Stuff, and what is never counted: "a picture of fruit".
_STUFF = """
fruit, food, bread, candy, coffee, water, fire, snow, sky, space, clothes, furniture, jewelry, glasses,
people, graffiti, pixel art, concept art
"""
# Works of art and styles.
_STYLES = """
painting, oil painting, watercolor painting, landscape painting, drawing, sketch, cartoon, comic, logo, icon,
pattern, sculpture, photograph, poster
"""


def _listed(text: str) -> tuple[str, ...]:
    return tuple(" ".join(entry.split()) for entry in text.split(",") if entry.strip())


STUFF = frozenset(_listed(_STUFF))
SUBJECTS = (*_listed(_COUNTED), *_listed(_STUFF), *_listed(_STYLES))
