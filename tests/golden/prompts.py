"""The prompts of the SmolLM2 golden file: each a raw text or a chat, chosen for what it asks of a tokenizer or a cache."""

CARGO = ("coal", "timber", "grain", "mail", "limestone", "machine parts", "apples", "paper")
PLACES = ("Ashford", "Millbrook", "Carrow", "Denby Vale", "Eastgate", "Fell End", "Harrow Hill")
WEATHER = ("clear and cold", "raining hard", "foggy until noon", "windy from the west", "snowing lightly")
REMARKS = (
    "The turntable was greased and the crew had breakfast before the first departure.",
    "A boiler was washed out, and the fitter asked for two new gauge glasses.",
    "Nobody was late, which the foreman wrote down because it was unusual.",
    "The signal lamp at the north end failed again and was replaced.",
)


def station_log(days: int) -> str:
    """A log with as many entries as days: long, varied, and the same every time."""
    return "\n".join(
        f"Day {day}: the weather was {WEATHER[day % 5]}. Engine {100 + 37 * day % 900} left for {PLACES[day % 7]} at "
        f"{6 + day % 5}:{10 + 7 * day % 50} with {3 + day * 5 % 19} wagons of {CARGO[day * 3 % 8]}. {REMARKS[day % 4]}"
        for day in range(1, days + 1)
    )


def user(content: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": content}]


# name -> text for the model as it stands (str), or messages for the chat template (list)
PROMPTS: dict[str, str | list[dict[str, str]]] = {
    "plain_short": "The capital of France is",
    "plain_story": "Once upon a time, in a small village by the sea, there lived",
    "chat_question": user("What is the capital of France, and what is it known for?"),
    "chat_multi_turn": [
        {"role": "system", "content": "You are a patient teacher who answers in short sentences."},
        {"role": "user", "content": "Why is the sky blue?"},
        {"role": "assistant", "content": "Air scatters blue light more than red light."},
        {"role": "user", "content": "And why are sunsets red?"},
    ],
    "chat_long_document": user(
        "Here is the log of a railway depot.\n\n" + station_log(22) + "\n\nWhich cargo was carried, and where did it go?"
    ),
    "chat_json_list": user(
        'Answer with JSON only. Give a list of three fruits, each as {"name": ..., "colour": ..., "price_cents": ...}.'
    ),
    "chat_numbers": user("Add 1234 and 56789, then multiply by 10. Show the steps:  1) ...   2) ..."),
    "chat_emoji_accents": user("Write a cheerful birthday card for Zoë, my naïve café-loving friend! 🎉🎂 👩‍🚀 ¿Qué tal?"),
    "chat_german": user("Erkläre in zwei Sätzen, warum Österreich keine Küste hat. Bitte auf Deutsch, nicht übersetzen."),
    "plain_mixed_scripts": "English: good morning\nFrançais : bonjour\nРусский: доброе утро\n日本語: おはようございます\n中文:",
    "code_python": 'def fibonacci(n: int) -> int:\n    """Return the n-th Fibonacci number."""\n',
    "code_whitespace": "  a\tb\t\tc   1    22\n\n\n\tif x  ==  10:\n\t\treturn   [ 1,  2,   3 ]  \n \n  \t# end   \n",
}
