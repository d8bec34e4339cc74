"""Make the bundled sprites from two npm packages, both MIT.

    npm pack @lobehub/fluent-emoji-3d@1.1.0 emojibase-data@17.0.0      # then unpack both
    python tools/make_sprites.py FLUENT/package EMOJIBASE/package src/abc_embed/bundled/sprites

The choice below is by hand: concrete things that a person tells apart at 32 pixels, one picture
each, so near twins ("tiger" and "tiger face", twelve clock faces) are left out. `label=name`
renames a thing to the word a person would use.
"""

import json
import sys
from pathlib import Path

from PIL import Image

SIDE = 128  # pixels: sharp enough for a thing that fills half of 256, and 320 fit in 2 MB

KINDS = {
    "animal": """monkey, gorilla, dog, wolf, fox, raccoon, cat, lion, tiger, leopard,
        horse face=horse, unicorn, zebra, deer, cow, pig, ram=sheep, goat, two-hump camel=camel,
        llama, giraffe, elephant, rhinoceros, hippopotamus=hippo, mouse, rabbit, beaver,
        hedgehog, bat, bear, polar bear, koala, panda, sloth, otter, kangaroo, turkey, rooster,
        baby chick=chick, penguin, duck, swan, owl, flamingo, peacock, parrot, frog, crocodile,
        turtle, lizard, snake, dragon, sauropod=dinosaur, whale, dolphin, seal,
        tropical fish=fish, shark, octopus, jellyfish, crab, lobster, shrimp, squid, snail,
        butterfly, ant, honeybee=bee, lady beetle=ladybug, scorpion""",
    "food": """grapes*, watermelon, tangerine=orange, lemon, banana, pineapple, red apple=apple,
        pear, peach, cherries*, strawberry, blueberries*, kiwi fruit=kiwi, tomato, olive,
        avocado, eggplant, carrot, ear of corn=corn, bell pepper, cucumber, broccoli, garlic,
        onion, pea pod, bread, croissant, baguette bread=baguette, pretzel, pancakes*, waffle,
        cheese wedge=cheese, bacon, hamburger, french fries*, pizza, hot dog, sandwich, taco,
        egg, green salad=salad, popcorn, spaghetti, sushi, soft ice cream=ice cream cone,
        doughnut, cookie, birthday cake=cake, cupcake, chocolate bar, candy, lollipop, honey pot""",
    "drink": """baby bottle, hot beverage=cup of coffee, teapot,
        bottle with popping cork=bottle of wine, wine glass, cocktail glass=cocktail,
        beer mug=beer, cup with straw=cup with a straw, beverage box=juice box""",
    "plant": """cherry blossom, rose, hibiscus, sunflower, tulip, potted plant,
        evergreen tree=pine tree, deciduous tree=tree, palm tree, cactus,
        four leaf clover=clover, maple leaf, mushroom""",
    "vehicle": """locomotive, tram, bus, ambulance, fire engine, police car, taxi,
        automobile=car, tractor, racing car, motorcycle, motor scooter=scooter,
        auto rickshaw=rickshaw, bicycle, skateboard, roller skate, sailboat, canoe, speedboat,
        airplane, helicopter, rocket, flying saucer, manual wheelchair=wheelchair""",
    "building": """classical building=temple, hut, house, factory, castle, Tokyo tower=tower,
        church, mosque, tent, ferris wheel, roller coaster, circus tent, fountain,
        Statue of Liberty=statue""",
    "clothing": """glasses*, lab coat, t-shirt, jeans*, scarf, gloves*, coat, socks*, dress,
        one-piece swimsuit=swimsuit, shorts*, bikini, handbag, backpack, running shoe=sneaker,
        hiking boot, high-heeled shoe=high heel, ballet shoes*, crown, woman’s hat=sun hat,
        top hat, graduation cap, billed cap=cap, military helmet=helmet, ring""",
    "instrument": """saxophone, trumpet, accordion, guitar, musical keyboard=piano, violin,
        banjo, drum, maracas*, postal horn=horn, bell, microphone""",
    "tool": """hammer, axe, carpentry saw=saw, wrench, screwdriver, ladder, magnet, toolbox,
        kitchen knife=knife, scissors*, straight ruler=ruler,
        magnifying glass tilted left=magnifying glass, microscope, telescope, syringe,
        stethoscope, broom, bucket, toothbrush, fire extinguisher, flashlight, key, compass,
        pushpin, spoon, bow and arrow=bow, paintbrush, pencil, test tube""",
    "ball": """soccer ball, baseball, basketball, volleyball, american football=American football,
        tennis=tennis ball, pool 8 ball=billiard ball""",
    "toy": """yo-yo, kite, water pistol, teddy bear, puzzle piece, game die=die, piñata,
        balloon, boomerang, bowling=bowling pins*, joystick, ping pong=table tennis bat,
        boxing glove""",
    "furniture": """door, mirror, chair, toilet, bathtub, couch and lamp=couch, bed,
        shopping cart, basket, window""",
    "device": """watch, alarm clock, mobile phone, laptop, television, camera, radio, light bulb,
        telephone=telephone, keyboard, battery, floppy disk, video game=game controller,
        mantelpiece clock=clock, megaphone, candle""",
    "object": """crystal ball, trophy, anchor, umbrella, fire, snowman,
        globe with meridians=globe, money bag, gem stone=diamond, closed book=book, newspaper,
        scroll, package=box, postbox, briefcase, luggage=suitcase, locked=padlock, bomb, sponge,
        wrapped gift=present, jack-o-lantern=pumpkin, Christmas tree, artist palette=palette,
        thread, yarn, ribbon, bone, tooth, wood=log, rock, wheel, oil drum=barrel, stop sign,
        ring buoy=lifebuoy, feather, spiral shell=shell, jar, hourglass done=hourglass,
        red paper lantern=paper lantern, crossed swords=swords*, shield, balance scale=scale,
        coin, calendar, robot, ghost, alien, skull, rainbow, star, crescent moon=moon""",
}


MASS = {
    *("bread", "broccoli", "bacon", "popcorn", "butter", "sushi", "spaghetti", "garlic", "corn"),
    *("fire", "soap", "yarn", "cheese", "meat on bone", "shaved ice", "thread", "dna", "wood"),
}


def article(name: str, plural: bool) -> str:
    if plural:
        return name
    if name in MASS:
        return name
    an = name.startswith("hour") or (name[0].lower() in "aeiou" and name != "unicorn")
    return f"{'an' if an else 'a'} {name}"


def main(fluent: Path, emojibase: Path, out: Path) -> None:
    entries = json.loads((emojibase / "en/data.json").read_text())
    data = {e["label"]: e["hexcode"].lower() for e in entries}
    files = {p.stem.lower(): p for p in (fluent / "assets").glob("*.webp")}
    out.mkdir(parents=True, exist_ok=True)
    index, missing, seen = [], [], set()
    for kind, text in KINDS.items():
        for entry in (" ".join(e.split()) for e in text.split(",")):
            label, _, name = entry.partition("=")
            plural = "*" in entry
            label, name = label.replace("*", ""), (name or label).replace("*", "")
            code = data.get(label) or data.get(label.capitalize())
            spellings = (code, (code or "").replace("-fe0f", ""), f"{code}-fe0f")
            source = next((files[c] for c in spellings if c in files), None)
            if source is None or name in seen:
                missing.append(entry)
                continue
            seen.add(name)
            picture = Image.open(source).convert("RGBA")
            solid = picture.getchannel("A").point(lambda a: 255 * (a > 16))
            picture = picture.crop(solid.getbbox())
            scale = SIDE / max(picture.size)
            size = tuple(max(1, round(s * scale)) for s in picture.size)
            file = name.replace(" ", "_").replace("’", "").replace("ñ", "n") + ".webp"
            picture.resize(size, Image.Resampling.LANCZOS).save(out / file, quality=80, method=6)
            phrase = article(name, plural)
            index.append(
                {"name": name, "phrase": phrase, "kind": kind, "file": file, "hexcode": code}
            )
    index.sort(key=lambda e: e["name"])
    (out / "index.json").write_text(json.dumps(index, indent=0, ensure_ascii=False) + "\n")
    print(len(index), "sprites;", "no picture for:", missing)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:4]))
