"""Calls the gateway with the official Anthropic SDK as it comes: base URL and key, from the SDK's own environment variables, are all that is set."""

import json
import os

import anthropic


def main() -> None:
    client = anthropic.Anthropic()
    ask = {"model": "claude-sonnet-4-5", "max_tokens": 64}
    seen = {}

    message = client.messages.create(messages=[{"role": "user", "content": "sim:reply=Grüße"}], **ask)
    seen["message"] = message.content[0].text
    assert message.usage.output_tokens > 0

    with client.messages.stream(messages=[{"role": "user", "content": "sim:chunks=5 hi"}], **ask) as stream:
        seen["stream_words"] = len("".join(stream.text_stream).split())
        assert stream.get_final_message().usage.output_tokens > 0

    seen["count"] = client.messages.count_tokens(model=ask["model"], messages=[{"role": "user", "content": "hello"}]).input_tokens > 0
    seen["models"] = sorted(model.id for model in client.models.list())

    # Claude Code sends its key as a bearer token.
    bearer = anthropic.Anthropic(auth_token=os.environ["ANTHROPIC_API_KEY"], api_key=None)
    seen["bearer"] = bearer.messages.create(messages=[{"role": "user", "content": "sim:reply=yes"}], **ask).content[0].text

    try:
        client.messages.create(model="no-such-model", max_tokens=64, messages=[{"role": "user", "content": "hi"}])
    except anthropic.NotFoundError as err:
        seen["unknown_model"] = err.body["error"]["type"]
    try:
        anthropic.Anthropic(api_key="lk_wrong").messages.create(messages=[{"role": "user", "content": "hi"}], **ask)
    except anthropic.AuthenticationError as err:
        seen["wrong_key"] = err.body["error"]["type"]
        assert err.body["request_id"]
    print(json.dumps(seen))


if __name__ == "__main__":
    main()
