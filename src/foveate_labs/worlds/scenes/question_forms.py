"""How questions on scenes are worded.

The words of the held-out prompts are all in prompts of training, so that a small vocabulary has them; their order is
new.
"""

from __future__ import annotations

from foveate_labs.worlds.questions import Form

# A key is the kind, then after a colon the way of asking; `write_question` takes the kind from it.
# Names occur at every position of a question: a model that saw them only at the end looked for the last token.
FORMS: dict[str, Form] = {
    "name": Form(
        (
            "What is <region>?",
            "What is in <region>?",
            "What does <region> show?",
            "Name the thing in <region>.",
            "Which thing is at <region>?",
            "Say what <region> shows.",
            "At <region>, what thing is there?",
            "<region>: what is it?",
        ),
        ("What is at <region>?", "What thing does <region> show?", "Which thing is in <region>?"),
        "It shows {a_x}.",
    ),
    "name: which": Form(
        (
            "Is <region> {first} or {second}?",
            "Does <region> show {first} or {second}?",
            "<region>: is it {first} or {second}?",
            "At <region>, is there {first} or {second}?",
        ),
        ("What is <region>, {first} or {second}?", "What does <region> show, {first} or {second}?"),
        "It shows {a_x}.",
    ),
    "name: yes or no": Form(
        (
            "Is <region> {stated}?",
            "Does <region> show {stated}?",
            "Is the thing at <region> {stated}?",
            "<region>: is it {stated}?",
            "At <region>, is there {stated}?",
        ),
        ("Is the thing in <region> {stated}?", "Is {stated} at <region>?"),
        {"yes": "Yes, it shows {a_x}.", "no": "No, it shows {a_x}."},
    ),
    "where": Form(
        (
            # {is_x} is "is" or "are": some names are plural, such as "chopsticks".
            "Where is the {x}?",
            "Find the {x}.",
            "Where in the image is the {x}?",
            "Show the place of the {x}.",
            "The {x}: where is it?",
            "Point at the {x} in the image.",
            "Where can you see the {x}?",
            "Is the {x} in the image? Show the place.",
            "In the image, where {is_x} the {x} placed?",
            "Say where the {x} {is_x} placed.",
        ),
        ("Find the place of the {x}.", "Show where the {x} is."),
        "The {x} {is_x} at <region>.",
    ),
    "is there": Form(
        (
            "{Is_stated} there {stated}?",
            "{Is_stated} there {stated} in the image?",
            "Does the image show {stated}?",
            "Can you see {stated}?",
            "In the image, can you see {stated}?",
            "{Is_stated} there {stated} that you can see?",
            "Do you see {stated} in the image?",
        ),
        ("Can you see {stated} in the image?", "Does the image have {stated}?"),
        {"yes": "Yes, the image shows {stated}.", "no": "No, the image does not show {stated}."},
    ),
    "color": Form(
        (
            "What color {is_x} the {x}?",
            "Which color {is_x} the {x}?",
            "Name the color of the {x}.",
            "The {x}: which color is it?",
            "Of what color {is_x} the {x}?",
            "Say what color the {x} {is_x}.",
        ),
        ("What is the color of the {x}?", "The {x}: what color {is_x} the thing?"),
        "The {x} {is_x} {color}.",
    ),
    "color: region": Form(
        (
            "What color is <region>?",
            "Which color is the thing at <region>?",
            "Name the color of <region>.",
            "<region>: what color is it?",
            "Say what color <region> is.",
        ),
        ("What is the color of <region>?", "What color is the thing in <region>?"),
        "It is {color}.",
    ),
    "color: which": Form(
        (
            "{Is_x} the {x} {first} or {second}?",
            "What color {is_x} the {x}, {first} or {second}?",
            "The {x}: {first} or {second}?",
            "Of the colors {first} and {second}, which color {is_x} the {x}?",
        ),
        ("Which color {is_x} the {x}, {first} or {second}?", "Is the color of the {x} {first} or {second}?"),
        "The {x} {is_x} {color}.",
    ),
    "color: yes or no": Form(
        (
            "{Is_x} the {x} {stated}?",
            "Is the color of the {x} {stated}?",
            "The {x}: {is_x} the thing {stated}?",
            "In the image, {is_x} the {x} {stated}?",
            "Does the {x} have the color {stated}?",
        ),
        ("Is {stated} the color of the {x}?", "Does the image show the {x} in {stated}?"),
        {"yes": "Yes, the {x} {is_x} {color}.", "no": "No, the {x} {is_x} {color}."},
    ),
    "count": Form(
        (
            "How many {xs} are there?",
            "How many {xs} does the image show?",
            "Count the {xs}.",
            "How many {xs} can you see in the image?",
            "How many {xs} does the image have?",
            "The {xs}: how many are there?",
            "There are how many {xs}?",
            "In the image, how many {xs} are there?",
            "Say how many {xs} you can see.",
        ),
        ("How many {xs} are in the image?", "Count the {xs} in the image.", "How many {xs} can you see?"),
        "There {are_n} {n_xs}.",
    ),
    "count: which": Form(
        (
            "Are there {first} or {second} {xs}?",
            "How many {xs} are there, {first} or {second}?",
            "The {xs}: are there {first} or {second}?",
            "Does the image show {first} or {second} {xs}?",
            "In the image, can you see {first} or {second} {xs}?",
        ),
        ("How many {xs} does the image show, {first} or {second}?", "Can you see {first} or {second} {xs}?"),
        "There {are_n} {n_xs}.",
    ),
    "count: yes or no": Form(
        (
            "{Are_stated} there {stated_xs}?",
            # "Exactly", because an image of three cups also shows two.
            "Does the image show exactly {stated_xs}?",
            "{Are_stated} there exactly {stated_xs}?",
            "Exactly {stated_xs}: does the image show that?",
            "Can you see that there are exactly {stated_xs}?",
        ),
        ("Does the image have exactly {stated_xs}?", "Can you see exactly {stated_xs}?"),
        {"yes": "Yes, there {are_n} {n_xs}.", "no": "No, there {are_n} {n_xs}."},
    ),
    "count: more": Form(
        (
            "Are there more {first} or more {second}?",
            "Which are there more of, {first} or {second}?",
            "Does the image show more {first} or more {second}?",
            "The {first} and the {second}: which are there more of?",
            "In the image, are there more {first} or more {second}?",
        ),
        ("Of which are there more, {first} or {second}?", "Can you see more {first} or more {second}?"),
        "There are more {xs}.",
    ),
    "count: more, yes or no": Form(
        (
            "Are there more {first} than {second}?",
            "Does the image show more {first} than {second}?",
            "More {first} than {second}: does the image show that?",
            "Are there, in the image, more {first} than {second}?",
        ),
        ("Can you see more {first} than {second}?", "Does the image have more {first} than {second}?"),
        {"yes": "Yes, there are more {xs}.", "no": "No, there are more {xs}."},
    ),
    "position": Form(
        (
            "Is the {x} in the {first} half or the {second} half of the image?",
            "In which half of the image is the {x}, {first} or {second}?",
            "Which half of the image shows the {x}, the {first} or the {second} half?",
            "The {x}: in the {first} half or the {second} half?",
            "Is it the {first} half or the {second} half where the {x} is?",
            "Do you see the {x} in the {first} half or in the {second} half?",
        ),
        (
            "Which half of the image is the {x} in, {first} or {second}?",
            "Can you see the {x} in the {first} or the {second} half of the image?",
        ),
        "The {x} {is_x} in the {side} half.",
    ),
    "position: yes or no": Form(
        (
            "Is the {x} in the {stated} half of the image?",
            "Does the {stated} half of the image show the {x}?",
            "The {x}: is it in the {stated} half of the image?",
            "Is it the {stated} half of the image that shows the {x}?",
            "Do you see the {x} in the {stated} half?",
            "In the {stated} half of the image, is there the {x}?",
        ),
        ("Can you see the {x} in the {stated} half of the image?", "Is the {stated} half where the {x} is?"),
        {"yes": "Yes, the {x} {is_x} in the {side} half.", "no": "No, the {x} {is_x} in the {side} half."},
    ),
    "position: relation": Form(
        (
            "Is the {x} {first} or {second} the {y}?",
            "Is the {x} placed {first} or {second} the {y}?",
            "The {x}: {first} or {second} the {y}?",
            "Do you see the {x} {first} or {second} the {y}?",
            "Is it {first} or {second} the {y} that you see the {x}?",
            "In the image, is the {x} {first} or {second} the {y}?",
        ),
        ("How is the {x} placed, {first} or {second} the {y}?", "Where is the {x}, {first} or {second} the {y}?"),
        "The {x} {is_x} {relation} the {y}.",
    ),
    "position: relation, yes or no": Form(
        (
            "Is the {x} {stated} the {y}?",
            "Is the {x} placed {stated} the {y}?",
            "Can you see the {x} {stated} the {y}?",
            "The {x}: is it {stated} the {y}?",
            "Do you see the {x} {stated} the {y}?",
            "In the image, is the {x} {stated} the {y}?",
            "Is it {stated} the {y} where you see the {x}?",
            "Does the image have the {x} {stated} the {y}?",
        ),
        ("Does the image show the {x} {stated} the {y}?", "Is it the {x} that is {stated} the {y}?"),
        {"yes": "Yes, the {x} {is_x} {relation} the {y}.", "no": "No, the {x} {is_x} {relation} the {y}."},
    ),
    "position: further": Form(
        (
            "Which is further {side}, the {first} or the {second}?",
            "Is it the {first} or the {second} that is further {side}?",
            "The {first} or the {second}: which is further {side}?",
            "In the image, is the {first} or the {second} further {side}?",
            "Of the {first} and the {second}, which is further {side}?",
        ),
        (
            "Is the {first} or the {second} further {side}?",
            "Which thing is further {side}, the {first} or the {second}?",
        ),
        "The {x} {is_x} further {side}.",
    ),
    # From here on questions are about several images; `<image>` is put in front of them by `image_sets`.
    "compare": Form(
        (
            "Which image shows {stated}, the {first} or the {second}?",
            "Is {stated} in the {first} or the {second} image?",
        ),
        (
            "In which image can you see {stated}, the {first} or the {second}?",
            "Does the {first} or the {second} image show {stated}?",
        ),
        "The {answer} image shows {stated}.",
    ),
    "compare: both": Form(
        ("Do both images show {stated}?", "Is {stated} in both images?"),
        ("Can you see {stated} in both images?", "Do both images have {stated}?"),
        {"yes": "Yes, both images show {stated}.", "no": "No, one image does not show {stated}."},
    ),
    "compare: same number": Form(
        ("Do both images show the same number of {xs}?", "Is the number of {xs} in both images the same?"),
        ("Do both images have the same number of {xs}?", "Can you see the same number of {xs} in both images?"),
        {"yes": "Yes, both images show {n_xs}.", "no": "No, one image shows more {xs}."},
    ),
    "compare: more": Form(
        (
            "Which image shows more {xs}, the {first} or the {second}?",
            "Are more {xs} in the {first} or the {second} image?",
        ),
        (
            "Does the {first} or the {second} image show more {xs}?",
            "In which image can you see more {xs}, the {first} or the {second}?",
        ),
        "The {answer} image shows more {xs}.",
    ),
    "which image": Form(
        ("Which image shows {stated}?", "In which image is {stated}?", "Find the image with {stated}."),
        ("In which image can you see {stated}?", "Which is the image with {stated}?"),
        "The {answer} image shows {stated}.",
    ),
}
