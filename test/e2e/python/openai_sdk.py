"""Calls the gateway with the official OpenAI SDK as it comes: base URL and key, from the SDK's own environment variables, are all that is set."""

import io
import json
import wave

import openai


def wav_second() -> bytes:
    out = io.BytesIO()
    with wave.open(out, "wb") as w:
        w.setnchannels(1)
        w.setsampwidth(2)
        w.setframerate(8000)
        w.writeframes(b"\0\0" * 8000)
    return out.getvalue()


def main() -> None:
    client = openai.OpenAI()
    seen = {}

    chat = client.chat.completions.create(model="gpt-5-mini", messages=[{"role": "user", "content": "sim:reply=Grüße"}])
    seen["chat"] = chat.choices[0].message.content
    assert chat.usage.total_tokens > 0

    text, last = "", None
    with client.chat.completions.create(
        model="fast", messages=[{"role": "user", "content": "sim:chunks=5 hi"}], stream=True, stream_options={"include_usage": True}
    ) as stream:
        for chunk in stream:
            if chunk.choices and chunk.choices[0].delta.content:
                text += chunk.choices[0].delta.content
            last = chunk
    seen["chat_stream_words"] = len(text.split())
    assert last.usage.total_tokens > 0

    seen["completion"] = client.completions.create(model="gpt-5-mini", prompt="sim:reply=ok").choices[0].text

    response = client.responses.create(model="gpt-5-mini", input="sim:reply=pong")
    seen["response"] = response.output_text
    events = [event.type for event in client.responses.create(model="gpt-5-mini", input="sim:reply=pong", stream=True)]
    seen["response_events"] = [events[0], events[-1]]

    seen["embedding"] = len(client.embeddings.create(model="text-embedding-3-small", input="hello").data)
    seen["image"] = bool(client.images.generate(model="gpt-image-1", prompt="a key").data[0].b64_json)
    seen["image_edit"] = bool(client.images.edit(model="gpt-image-1", prompt="a key", image=("a.png", b"\x89PNG\r\n\x1a\n")).data[0].b64_json)
    seen["speech"] = len(client.audio.speech.create(model="gpt-4o-mini-tts", voice="alloy", input="hello").content) > 0
    seen["transcription"] = bool(client.audio.transcriptions.create(model="listener", file=("a.wav", wav_second())).text)
    seen["moderation"] = client.moderations.create(model="omni-moderation-latest", input="hello").results[0].flagged
    seen["models"] = sorted(model.id for model in client.models.list())
    seen["model"] = client.models.retrieve("gpt-5-mini").id

    try:
        client.chat.completions.create(model="no-such-model", messages=[{"role": "user", "content": "hi"}])
    except openai.NotFoundError as err:
        seen["unknown_model"] = [err.code, err.param]
    try:
        openai.OpenAI(api_key="lk_wrong").models.list()
    except openai.AuthenticationError as err:
        seen["wrong_key"] = err.code
        assert err.request_id
    print(json.dumps(seen))


if __name__ == "__main__":
    main()
