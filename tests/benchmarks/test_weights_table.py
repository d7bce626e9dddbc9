from benchmarks.memory.run import PARTS, table, weights


def test_weights_of_the_published_unets():
    """865.9 and 2,567.5 million, as the model cards have them; nothing is allocated."""
    assert weights(PARTS["Stable Diffusion 2.1"]["denoiser"]) == 865_910_724
    assert weights(PARTS["SDXL"]["denoiser"]) == 2_567_463_684


def test_the_table_counts_two_bytes_a_weight():
    assert table({"model": {"denoiser": 10**9, "VAE": 5 * 10**8}}).splitlines()[-1] == (
        "| model | 3.0 | denoiser 2.0, VAE 1.0 |"
    )
