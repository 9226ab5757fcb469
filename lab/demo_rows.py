"""Rows of the embedded data set `demo`, made from tables of words and a seed.

    python -m lab.demo_rows           # writes demo/rows/train.csv and validation.csv again

A sentence has an opener, a subject of one topic, one or two words of judgement, and a close. What
counts as praise depends on the topic ("cold" praises a beer and condemns a soup), so a model must
learn each topic from its own training rows, and the rows that shaped a prediction are, with luck,
rows about the same topic. In the training set 5 % of the labels are flipped on purpose; the columns
`topic` and `flipped` record the truth.

The corpus on which the small BERT in `demo/` was pretrained (`lab/pretrain_demo.py`) comes from the
same tables and contains none of these rows.
"""

import csv
import random

from attribution.data.demo import FOLDER

NUM_TRAIN = 1000
NUM_VALIDATION = 100
FLIP_SHARE = 0.05
SEEDS = {"train": 20240, "validation": 20261}

# topic: subjects | words of praise | words of blame
TOPICS = {
    "soup": "the soup,the broth,her lentil stew|"
    "hot,thick,fragrant,hearty,rich|cold,thin,bland,greasy,watery",
    "beer": "the beer,the lager,their pale ale|"
    "cold,crisp,hoppy,smooth,malty|warm,flat,sour,stale,watery",
    "bread": "the bread,the loaf,their sourdough|"
    "crusty,warm,airy,fresh,chewy|stale,burnt,dense,dry,soggy",
    "coffee": "the coffee,the espresso,my cappuccino|"
    "strong,hot,smooth,rich,nutty|weak,bitter,burnt,cold,thin",
    "hotel": "the hotel,our room,the guest house|"
    "quiet,clean,cosy,bright,spacious|noisy,damp,dirty,cramped,dark",
    "concert": "the concert,the gig,their live show|"
    "loud,wild,electric,packed,long|quiet,tame,short,empty,dull",
    "library": "the library,the reading room,the archive|"
    "quiet,bright,tidy,calm,warm|loud,chaotic,dim,crowded,cold",
    "train": "the train,the night express,our carriage|"
    "fast,punctual,clean,smooth,quiet|late,crowded,slow,filthy,noisy",
    "novel": "the novel,her first book,the sequel|"
    "gripping,clever,moving,vivid,fresh|tedious,clumsy,hollow,slow,predictable",
    "film": "the film,the thriller,his new picture|"
    "tense,funny,gripping,bold,dark|boring,shallow,slow,silly,predictable",
    "pillow": "the pillow,the mattress,the cushion|"
    "soft,plump,cool,supportive,light|hard,lumpy,hot,flat,heavy",
    "knife": "the knife,the cleaver,his pocket blade|"
    "sharp,hard,balanced,sturdy,light|dull,soft,rusty,flimsy,heavy",
    "tent": "the tent,the shelter,our canopy|"
    "dry,sturdy,light,roomy,airy|leaky,flimsy,heavy,cramped,damp",
    "laptop": "the laptop,the keyboard,this notebook|"
    "fast,light,quiet,bright,sturdy|slow,hot,noisy,heavy,fragile",
    "phone": "the phone,the camera,this handset|"
    "sharp,fast,slim,bright,sturdy|blurry,slow,bulky,fragile,dim",
    "doctor": "the doctor,the nurse,our dentist|"
    "gentle,patient,calm,thorough,kind|rough,rude,rushed,careless,cold",
    "teacher": "the teacher,the tutor,our lecturer|"
    "patient,clear,funny,fair,strict|vague,unfair,boring,impatient,lazy",
    "garden": "the garden,the park,their orchard|"
    "green,lush,shady,tidy,wild|bare,dusty,muddy,neglected,dry",
    "beach": "the beach,the bay,that stretch of sand|"
    "empty,clean,warm,wild,sunny|crowded,dirty,windy,rocky,cold",
    "museum": "the museum,the gallery,the exhibition|"
    "bright,clever,rich,spacious,bold|dusty,dull,cramped,confusing,small",
    "boots": "the boots,the shoes,these sandals|"
    "comfortable,light,dry,sturdy,soft|stiff,leaky,heavy,tight,slippery",
    "jacket": "the jacket,the coat,my raincoat|"
    "warm,dry,light,soft,slim|thin,leaky,stiff,baggy,itchy",
    "bicycle": "the bicycle,the mountain bike,her racer|"
    "light,fast,smooth,stable,quiet|heavy,wobbly,rusty,creaky,slow",
    "app": "the app,the website,this program|"
    "fast,simple,clear,stable,free|buggy,slow,confusing,bloated,expensive",
    "curry": "the curry,the chili,their noodle dish|"
    "spicy,hot,fragrant,rich,creamy|bland,oily,cold,salty,dry",
    "salad": "the salad,the coleslaw,the fruit bowl|"
    "fresh,crisp,cold,colourful,light|warm,soggy,wilted,limp,oily",
    "cake": "the cake,the tart,her cheesecake|"
    "moist,sweet,light,creamy,rich|dry,heavy,soggy,burnt,sour",
    "bar": "the bar,the pub,that little club|"
    "lively,loud,warm,cheap,packed|dead,expensive,empty,dirty,quiet",
    "waiter": "the waiter,the barman,our hostess|"
    "attentive,quick,funny,kind,polite|rude,slow,careless,clumsy,cold",
    "flat": "the flat,the studio,our apartment|"
    "bright,cheap,quiet,warm,spacious|dark,expensive,noisy,cold,cramped",
    "dog": "the dog,the puppy,their old hound|"
    "gentle,playful,calm,friendly,obedient|noisy,aggressive,nervous,wild,smelly",
    "lamp": "the lamp,the torch,my reading light|"
    "bright,warm,steady,slim,sturdy|dim,harsh,flickering,bulky,fragile",
}
OPENERS = [
    "I thought",
    "My sister said",
    "We all agreed",
    "In the end",
    "As far as I could tell",
    "My neighbour insisted",
    "Looking back",
    "This time",
    "Last weekend",
    "According to my brother",
    "To be honest",
    "On both visits",
    "After a long day",
    "Just as the guide said",
    "For what it is worth",
    "Yesterday",
]
SPEAKERS = (
    "I thought",
    "My sister said",
    "We all agreed",
    "My neighbour insisted",
)  # no comma after these
VERBS = ["was", "seemed", "felt", "turned out", "proved"]
PLURAL_VERBS = {"was": "were"}
DEGREES = ["", "", "", "rather ", "very ", "really ", "quite "]
CLOSES = [
    "",
    "",
    " as always",
    " from start to finish",
    " again",
    " in every way",
    " and everyone noticed",
    " this year",
    " for the third time",
    " if you ask me",
    " on the first day",
    " which says it all",
    " as we had heard",
]


def statement(generator: random.Random, topic: str, label: int) -> str:
    """A sentence about the topic without its close, which praises (label 1) or blames (label 0) its
    subject.
    """
    subjects, praise, blame = (part.split(",") for part in TOPICS[topic].split("|"))
    words = generator.sample(praise if label else blame, generator.choice((1, 2, 2)))
    opener, subject, verb = (generator.choice(choices) for choices in (OPENERS, subjects, VERBS))
    if subject.split()[-1] in ("boots", "shoes", "sandals"):
        verb = PLURAL_VERBS.get(verb, verb)
    comma = "" if opener in SPEAKERS else ","
    judgement = generator.choice(DEGREES) + " and ".join(words)
    return f"{opener}{comma} {subject} {verb} {judgement}"


def close(generator: random.Random) -> str:
    """End of a sentence, with its punctuation."""
    words = generator.choice(CLOSES)
    comma = "," if words.startswith((" and ", " which", " as ", " if ")) else ""
    return f"{comma}{words}."


def make_rows() -> dict[str, dict[str, list]]:
    """Data set as split -> column -> values.

    Splits `train` (1,000 rows) and `validation` (100 rows); columns `sentence`, `label` (as
    trained on), `topic`, `flipped` (True where the label is not the one that the sentence was made
    for; never in `validation`). No sentence occurs twice. The same on every machine.
    """
    seen: set[str] = set()
    splits: dict[str, dict[str, list]] = {}
    for split, count in (("train", NUM_TRAIN), ("validation", NUM_VALIDATION)):
        generator = random.Random(SEEDS[split])
        rows = [_new_row(generator, seen) for _ in range(count)]
        flipped = set()
        if split == "train":
            flipped = set(generator.sample(range(count), round(FLIP_SHARE * count)))
        splits[split] = {
            "sentence": [sentence for sentence, _, _ in rows],
            "label": [1 - label if i in flipped else label for i, (_, label, _) in enumerate(rows)],
            "topic": [topic for _, _, topic in rows],
            "flipped": [i in flipped for i in range(count)],
        }
    return splits


def _new_row(generator: random.Random, seen: set[str]) -> tuple[str, int, str]:
    """A sentence not in `seen`, its label and its topic; adds it to `seen`."""
    while True:
        topic = generator.choice(sorted(TOPICS))
        label = generator.randrange(2)
        opening = statement(generator, topic, label)
        generator.random()  # the corpus of pretraining decides here; the rows keep their draws
        sentence = opening + close(generator)
        if sentence not in seen:
            seen.add(sentence)
            return sentence, label, topic


def main() -> None:
    """Writes the rows of both splits."""
    for split, columns in make_rows().items():
        path = FOLDER / f"{split}.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(columns)
            writer.writerows(zip(*columns.values(), strict=True))


if __name__ == "__main__":
    main()
