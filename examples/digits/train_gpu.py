"""Train the same network on the digits with PyTorch, on the GPU that the job was given."""

import argparse

import digits
import numpy as np
import torch

HIDDEN = 512
BATCH = 32
RATE = 0.05


def main():
    """Train for a number of epochs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=300)
    parser.add_argument("--device", default="cuda")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    torch.manual_seed(0)
    (pixels, wanted), (test_pixels, test_wanted) = (
        [torch.from_numpy(part).to(device) for part in pair] for pair in digits.load()
    )
    model = torch.nn.Sequential(
        torch.nn.Linear(pixels.shape[1], HIDDEN), torch.nn.ReLU(), torch.nn.Linear(HIDDEN, 10)
    ).to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    run = digits.Run()
    first, weights = run.resume(as_arrays(model))
    model.load_state_dict({name: torch.from_numpy(np.array(value)) for name, value in weights.items()})
    accuracy = share_right(model, test_pixels, test_wanted)
    for epoch in range(first, arguments.epochs):
        losses = []
        for batch in np.array_split(digits.order(epoch, len(pixels)), len(pixels) // BATCH):
            loss = torch.nn.functional.cross_entropy(model(pixels[batch]), wanted[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        accuracy = share_right(model, test_pixels, test_wanted)
        if epoch % 25 == 24 or epoch == arguments.epochs - 1:
            run.report(epoch, as_arrays(model), loss=float(torch.stack(losses).mean()), accuracy=accuracy)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "the CPU"
    run.finish(as_arrays(model), accuracy=accuracy, where=name)


def as_arrays(model):
    """Return the weights of a model by name."""
    return {name: value.detach().cpu().numpy() for name, value in model.state_dict().items()}


def share_right(model, pixels, wanted):
    """Return how many of the examples the model names rightly."""
    with torch.no_grad():
        return float((model(pixels).argmax(dim=1) == wanted).float().mean())


if __name__ == "__main__":
    main()
