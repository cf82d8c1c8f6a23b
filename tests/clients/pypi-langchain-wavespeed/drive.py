"""LangChain's tools for WaveSpeed, with the SDK's client that they are given."""

from answer import answer
from langchain_wavespeed import WaveSpeedImageGeneration, WaveSpeedRunModel
from wavespeed import Client


def generate(url, key, model, timeout=None, **said):
    client = Client(api_key=key, base_url=url)
    return WaveSpeedImageGeneration(client=client, model=model, timeout=timeout, poll_interval=0.1).invoke(said)


def run(url, key, model, body):
    client = Client(api_key=key, base_url=url)
    return WaveSpeedRunModel(client=client, poll_interval=0.1).invoke({"model": model, "input": body})


answer({"generate": generate, "run": run})
