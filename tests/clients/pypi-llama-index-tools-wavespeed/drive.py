"""LlamaIndex's tools for WaveSpeed, with the SDK's client that they are given."""

from answer import answer
from llama_index.tools.wavespeed import WaveSpeedToolSpec
from wavespeed import Client


def tool(name, url, key, model="", timeout=None):
    client = Client(api_key=key, base_url=url)
    tools = WaveSpeedToolSpec(client=client, image_model=model, timeout=timeout, poll_interval=0.1).to_tool_list()
    return next(each for each in tools if each.metadata.name == name)


def generate(url, key, model, timeout=None, **said):
    return tool("generate_image", url, key, model, timeout)(**said).content


def run(url, key, model, body):
    return tool("run_model", url, key)(model=model, input=body).content


def look_up(url, key, task):
    return tool("get_prediction", url, key)(prediction_id=task).content


answer({"generate": generate, "run": run, "look_up": look_up})
