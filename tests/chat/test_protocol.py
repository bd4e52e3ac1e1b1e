"""Requests as the protocol writes them."""

from __future__ import annotations

import base64

from foveate.chat.protocol import ChatImage, ChatMessage, ChatRequest, ResponseSchema


def test_a_request_with_an_image() -> None:
    image = ChatImage(b"\xff\xd8", "image/jpeg")
    request = ChatRequest((ChatMessage("Be brief.", role="system"), ChatMessage("What is it?", (image,))), 50, 0.2, 7)
    data = base64.b64encode(b"\xff\xd8").decode()
    assert request.body("m") == {
        "model": "m",
        "messages": [
            {"role": "system", "content": [{"type": "text", "text": "Be brief."}]},
            {
                "role": "user",
                "content": [
                    {"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{data}"}},
                    {"type": "text", "text": "What is it?"},
                ],
            },
        ],
        "max_tokens": 50,
        "temperature": 0.2,
        "seed": 7,
    }


def test_a_schema_as_response_format() -> None:
    schema = {"type": "object", "required": ["caption"]}
    assert ResponseSchema("ssc", schema).content() == {
        "type": "json_schema",
        "json_schema": {"name": "ssc", "schema": schema, "strict": True},
    }
