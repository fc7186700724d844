"""The grammar of the embedded corpus, as data: the words, and the sections that several plots share.

`telling.py` uses this file and `plots.py` in two directions: to tell stories and to check them.

A section is a sequence of steps, with one line for each way to tell a step:

    - ...      begins a step that is always told
    ? ...      begins a step that may be left out
    | ...      another way to tell the step above
    @name      the steps of another section

    {slot}     a word about one of the VARIABLES: the same for the whole story
    [a|b|]     free choice, may be nested
    <name>     a free choice from PHRASES
    x. / Y.    two sentences; no sentence ends inside quotes except where the quotes end
"""

from __future__ import annotations


def _list(text: str, separator: str | None = None) -> list[str]:
    return text.split(separator)


GIRLS = _list("Anna Bella Clara Daisy Emma Fay Holly Ivy Lily Lucy Mia Nora Rosie Ruby Zoe")
BOYS = _list("Ben Charlie Finn Hugo Jack Leo Max Milo Ned Oscar Pip Sam Theo Toby Will")

# Slot -> the word for a girl, the word for a boy.
PRONOUNS = {
    "he": ("she", "he"),
    "He": ("She", "He"),
    "him": ("her", "him"),
    "his": ("her", "his"),
    "His": ("Her", "His"),
}

# Each word that may follow "a" begins with a consonant.
KINDS = _list(
    "bear beaver cat dog dragon duck fox frog hedgehog lamb mouse panda pig rabbit robot squirrel turtle"
)
TRAITS = _list("brave cheerful clever curious gentle kind merry playful quiet shy")
LOOKS = _list("red blue green yellow purple golden silver shiny striped white brown pink")
THINGS = _list(
    "ball basket bell blanket boat book button coin cup doll drum feather flute hat kite lamp "
    "lantern map mitten puppet ribbon ring scarf shell spoon teapot train wagon wand"
)
TOYS = _list("cup doll drum flute kite lamp lantern teapot train wagon wand")  # the things that can break
TASTES = _list("banana berry carrot cherry honey lemon nut plum pumpkin")
FOODS = _list("bun cake cookie muffin pancake pie pudding tart")
SKILLS = _list("dance sing paint juggle whistle cook read skate knit climb")
TIMES = _list("morning day afternoon")
SEEDS = _list("apple tree,pear tree,rose bush,berry bush,sunflower,pumpkin", ",")

# Place -> the word before "the ...".
PLACES = {
    place: word
    for word, places in (
        ("in", "forest garden meadow park orchard barn cave field"),
        ("by", "river pond bridge"),
        ("at", "beach market castle farm harbor"),
    )
    for place in places.split()
}
HOMES = _list(
    "on the hill,in the valley,by the lake,near the sea,near the old mill,in the village,under the big oak",
    ",",
)

# Weather -> a sight or a sound of it.
WEATHER = {
    "sunny": "The sun was warm and bright",
    "windy": "The wind danced in the trees",
    "cloudy": "Big clouds rolled over the hills",
    "rainy": "Soft rain fell on the leaves",
    "snowy": "White snow lay on the ground",
    "foggy": "Soft fog lay over the hills",
    "warm": "The birds were singing in the trees",
    "cold": "The wind was cold but the sky was blue",
}

PHRASES = {
    "little": "little|young|small",
    "named": "named|called",
    "cozy": "small|cozy|tiny",
    "sad": "sad|unhappy|worried",
    "happy": "happy|glad",
    "spot": "under a tree|behind a rock|in the tall grass|under a bush|behind a wall",
    "went": "went|walked|ran",
    "saw": "saw|found",
    "lovely": "lovely|wonderful|fine",
    "very": "very |so |",
    "cried": "cried|said|laughed",
    "close": "best|good|true",
}

SECTIONS = {}

SECTIONS["opening"] = """
- Once upon a time there was a {trait} <little> {kind} <named> {hero}. / {He} lived in a <cozy> house {home}.
| {hero} was a {trait} <little> {kind} who lived in a <cozy> house {home}.
| In a <cozy> house {home} lived a {trait} <little> {kind} <named> {hero}.
| Long ago a {trait} <little> {kind} <named> {hero} lived {home}.
| This is the story of {hero}, a {trait} <little> {kind} who lived {home}.
"""

SECTIONS["sky"] = """
? {Sky}.
"""

SECTIONS["friend passes"] = """
- [Just then|Soon] {friend} the {kind2} came [by|along|down the path].
| A {kind2} <named> {friend} [came by|heard {him}|saw {him}] and stopped.
| {friend} the {kind2} [heard {him}|saw {him}] and came to help.
"""

SECTIONS["friend known"] = """
- {His} best friend was {friend} the {kind2}.
| {He} often played with a {kind2} <named> {friend}.
| {friend} the {kind2} lived next door and was {his} best friend.
"""

SECTIONS["thanks"] = """
? "Thank you, {friend}!" <cried> {hero}.
| {hero} was so <happy> that {he} [hugged {friend}|jumped up and down|danced all around].
| {hero} gave {friend} a [big|warm] hug and said, "Thank you!"
| "You are a [good|true] friend, {friend}," said {hero}.
"""

SECTIONS["evening"] = """
? It had been a <lovely> {weather} {time}.
| [Then|At last|In the evening] they went back to the house {home} and [drank|had] warm [tea|milk].
| That night {hero} [slept well|dreamed sweet dreams] in the house {home}.
| That night the {trait} {kind} fell asleep with a [big|happy] smile.
"""

SECTIONS["together"] = """
? [From that day on|After that] {hero} and {friend} were <close> friends.
| [From that day on|After that] the {kind} and the {kind2} played together every day.
| {hero} the {kind} and {friend} the {kind2} lived happily ever after.
| "A friend is the best thing in the world," said {hero}.
| "I am so <happy> that you are my friend," said {friend}.
"""
