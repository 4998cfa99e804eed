"""Train a network of one hidden layer on the digits, in plain NumPy."""

import argparse

import digits
import numpy as np

HIDDEN = 512
BATCH = 32
RATE = 0.05


def forward(weights, pixels):
    """Return the hidden layer and the probability of each digit."""
    hidden = np.maximum(pixels @ weights["w1"] + weights["b1"], 0)
    scores = hidden @ weights["w2"] + weights["b2"]
    scores = np.exp(scores - scores.max(axis=1, keepdims=True))
    return hidden, scores / scores.sum(axis=1, keepdims=True)


def step(weights, pixels, wanted):
    """Go down the gradient of one batch in place; return its loss."""
    hidden, probability = forward(weights, pixels)
    rows = np.arange(len(wanted))
    loss = -np.log(probability[rows, wanted] + 1e-9).mean()
    slope = probability
    slope[rows, wanted] -= 1
    slope /= len(wanted)
    back = slope @ weights["w2"].T * (hidden > 0)
    weights["w2"] -= RATE * hidden.T @ slope
    weights["b2"] -= RATE * slope.sum(axis=0)
    weights["w1"] -= RATE * pixels.T @ back
    weights["b1"] -= RATE * back.sum(axis=0)
    return float(loss)


def main():
    """Train for a number of epochs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=300)
    epochs = parser.parse_args().epochs
    (pixels, wanted), (test_pixels, test_wanted) = digits.load()
    random = np.random.default_rng(0)
    weights = {
        "w1": random.normal(0, 0.1, (pixels.shape[1], HIDDEN)).astype(np.float32),
        "b1": np.zeros(HIDDEN, np.float32),
        "w2": random.normal(0, 0.1, (HIDDEN, 10)).astype(np.float32),
        "b2": np.zeros(10, np.float32),
    }
    run = digits.Run()
    first, weights = run.resume(weights)
    accuracy = float((forward(weights, test_pixels)[1].argmax(axis=1) == test_wanted).mean())
    for epoch in range(first, epochs):
        batches = np.array_split(digits.order(epoch, len(pixels)), len(pixels) // BATCH)
        loss = float(np.mean([step(weights, pixels[batch], wanted[batch]) for batch in batches]))
        accuracy = float((forward(weights, test_pixels)[1].argmax(axis=1) == test_wanted).mean())
        if epoch % 25 == 24 or epoch == epochs - 1:
            run.report(epoch, weights, loss=loss, accuracy=accuracy)
    run.finish(weights, accuracy=accuracy, where="the CPU")


if __name__ == "__main__":
    main()
