"""Hermite coefficients, exact kernels, propagated covariances, sampling and the split-sample estimator."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate

from ncbook import rainbow
from ncbook.runtime import DTYPE, generator

variances = st.floats(0.02, 30)
correlations = st.floats(-0.999, 0.999)
named = ("erf", "linear", "relu", "sign", "tanh")


def scaled(r, correlation, r2):
    return correlation * math.sqrt(r * r2)


def by_quad(function, r):
    """Mean slope and variance of a function under N(0, r) by adaptive quadrature."""

    def expect(f):
        density = lambda x: math.exp(-x * x / 2) / math.sqrt(2 * math.pi)  # noqa: E731
        return sum(
            integrate.quad(lambda x: f(x) * density(x), *ends, epsabs=1e-13, limit=200)[0]
            for ends in ((-13, 0), (0, 13))
        )

    root = math.sqrt(r)
    mean = expect(lambda x: function(root * x))
    return expect(lambda x: x * function(root * x)) / root, expect(
        lambda x: function(root * x) ** 2
    ) - mean**2


REFERENCE = [
    ("tanh", 1.0, 0.6057055096, 0.3942944904, 0.0274153260),
    ("tanh", 0.5, 0.7263236921, 0.2736763079, 0.0099032551),
    ("tanh", 2.0, 0.4800242543, 0.5199757457, 0.0591291762),
    ("erf", 1.0, 0.6514700159, 0.4645590544, 0.0401458728),
    ("erf", 0.5, 0.7978845608, 0.3333333333, 0.0150234471),
    ("sign", 1.0, 0.7978845608, 1.0, 0.3633802276),
]


@pytest.mark.parametrize(("activation", "r", "k1", "second", "rest"), REFERENCE)
def test_reference_coefficients(activation, r, k1, second, rest):
    assert rainbow.hermite_coefficients(activation, r) == pytest.approx((k1, second, rest), abs=5.1e-11)


def test_reference_joint_coefficients():
    # by nested adaptive quadrature and by the Hermite series alike
    assert rainbow.joint_moment("tanh", "tanh", 1, 1, 0.5) == pytest.approx(0.186324413203, abs=1e-12)
    assert rainbow.joint_coefficient("tanh", "tanh", 1, 1, 0.5) == pytest.approx(0.002884831022, abs=1e-12)
    assert rainbow.joint_moment("tanh", "tanh", 0.5, 1, 0.25) == pytest.approx(0.1106101471, abs=5.1e-11)
    assert rainbow.joint_coefficient("tanh", "tanh", 0.5, 1, 0.25) == pytest.approx(0.0006255816, abs=5.1e-11)


@pytest.mark.parametrize(
    ("activation", "expected"),
    [
        ("tanh", (1, 0.3942944904, 0.2364504105, 0.1666563538)),
        ("erf", (1, 0.4645590544, 0.3199090097, 0.2551718405)),
    ],
)
def test_reference_variances_of_deep_independent_layers(activation, expected):
    r = 1.0
    for value in expected:
        assert r == pytest.approx(value, abs=5.1e-11)
        r = rainbow.hermite_coefficients(activation, r).second_moment


@pytest.mark.parametrize(
    ("name", "function"),
    [
        ("erf", math.erf),
        ("linear", lambda x: x),
        ("relu", lambda x: max(x, 0.0)),
        ("sign", lambda x: math.copysign(1, x)),
        ("tanh", math.tanh),
    ],
)
@pytest.mark.parametrize("r", [0.03, 1.0, 7.3, 40.0])
def test_coefficients_agree_with_adaptive_quadrature(name, function, r):
    k1, second, rest = rainbow.hermite_coefficients(name, r)
    assert (k1, second) == pytest.approx(by_quad(function, r), rel=1e-9)
    assert rest == pytest.approx(second - r * k1**2, abs=1e-14 * max(1, r))


@given(variances)
@settings(deadline=None, max_examples=50)
def test_identities_of_the_coefficients(r):
    k1, second, rest = rainbow.hermite_coefficients("tanh", r)
    assert k1 == pytest.approx(1 - second, abs=1e-13)  # tanh' = 1 − tanh²
    for name in named:
        k1, second, rest = rainbow.hermite_coefficients(name, r)
        assert rest >= -1e-14
        assert second == pytest.approx(r * k1**2 + rest)
        # twice the same Gaussian
        assert rainbow.joint_coefficient(name, name, r, r, r) == pytest.approx(rest, abs=1e-9)
    k1, _, rest = rainbow.hermite_coefficients("relu", r)
    assert (k1, rest) == pytest.approx((0.5, r * (1 / 4 - 1 / (2 * math.pi))))


@given(variances)
@settings(deadline=None, max_examples=20)
def test_functions_agree_with_names(r):
    smooth = rainbow.hermite_coefficients(torch.erf, r)
    assert smooth == pytest.approx(rainbow.hermite_coefficients("erf", r), abs=1e-12)
    kinked = rainbow.hermite_coefficients(torch.relu, r)
    assert kinked == pytest.approx(rainbow.hermite_coefficients("relu", r), rel=1e-3)
    shifted = rainbow.hermite_coefficients(lambda x: torch.tanh(x) + 3, r)  # centred by itself
    assert shifted == pytest.approx(rainbow.hermite_coefficients("tanh", r), abs=1e-12)


@pytest.mark.parametrize("first", named)
@pytest.mark.parametrize("second", named)
@given(r=st.floats(0.1, 6), r2=st.floats(0.1, 6), correlation=st.floats(-0.95, 0.95))
@settings(deadline=None, max_examples=4)
def test_joint_moments_agree_with_their_hermite_series(first, second, r, r2, correlation):
    """Σ a_q b_q ρ^q over normalised Hermite polynomials, with coefficients from an independent rule."""
    c = scaled(r, correlation, r2)
    x = np.linspace(-9, 9, 18001)
    density = np.exp(-(x**2) / 2)
    density /= density.sum()
    u, v = (
        rainbow.ACTIVATIONS[a](torch.from_numpy(math.sqrt(s) * x)).numpy()
        for a, s in ((first, r), (second, r2))
    )
    total, before, now, q = 0.0, np.zeros_like(x), np.ones_like(x), 0
    while q < 120:
        if q:
            total += (u * now * density).sum() * (v * now * density).sum() * correlation**q
        before, now, q = now, (x * now - math.sqrt(q) * before) / math.sqrt(q + 1), q + 1
    # kinks and jumps: the series has a tail of order ρ^120 / 120, the rule an error of 1e-3
    assert rainbow.joint_moment(first, second, r, r2, c) == pytest.approx(
        total, abs=3e-3 * math.sqrt(r * r2 + 1)
    )
    linear = c * rainbow.hermite_coefficients(first, r).k1 * rainbow.hermite_coefficients(second, r2).k1
    assert rainbow.joint_coefficient(first, second, r, r2, c) == pytest.approx(
        rainbow.joint_moment(first, second, r, r2, c) - linear, abs=1e-12
    )


@pytest.mark.parametrize("pair", [("erf", "tanh"), ("sign", "tanh"), ("tanh", "sign"), ("tanh", "tanh")])
def test_joint_moments_by_quadrature_are_accurate(pair):
    """E φ(u) ψ(v) through E[φ(u)|v] by adaptive quadrature."""
    r, r2, c = 1.3, 0.7, 0.6
    functions = {"erf": math.erf, "tanh": math.tanh, "sign": lambda x: math.copysign(1, x)}
    smooth, other = (pair[1], pair[0]) if pair[1] == "tanh" else pair
    u, v = (r, r2) if pair[1] == "tanh" else (r2, r)  # variance of `other`, then of tanh
    deviation = math.sqrt(u - c * c / v)

    def given_second(m):
        if other == "sign":
            return math.erf(m / deviation / math.sqrt(2))
        f = lambda g: functions[other](m + deviation * g) * math.exp(-g * g / 2)  # noqa: E731
        return integrate.quad(f, -12, 12, epsabs=1e-12)[0] / math.sqrt(2 * math.pi)

    def integrand(x):
        y = math.sqrt(v) * x
        return functions[smooth](y) * given_second(c / v * y) * math.exp(-x * x / 2) / math.sqrt(2 * math.pi)

    expected = integrate.quad(integrand, -12, 12, epsabs=1e-11)[0]
    assert rainbow.joint_moment(*pair, r, r2, c) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("name", ["erf", "sign", "relu", "linear"])
def test_exact_kernel_has_the_right_diagonal_and_is_positive(name):
    A = torch.randn(6, 9, generator=generator(3), dtype=DTYPE)
    S = A @ A.T
    kernel = rainbow.exact_kernel(S, name)
    diagonal = rainbow.hermite_coefficients(name, S.diagonal()).second_moment
    torch.testing.assert_close(kernel.diagonal(), diagonal, rtol=1e-10, atol=1e-12)
    assert float(torch.linalg.eigvalsh(kernel).min()) > 0
    torch.testing.assert_close(kernel, kernel.T, rtol=0, atol=0)


def test_kernels_have_their_names():
    S = torch.tensor([[1.0, 0.3], [0.3, 2.0]], dtype=DTYPE)
    torch.testing.assert_close(rainbow.arcsine_kernel(S, "sign"), rainbow.exact_kernel(S, "sign"))
    torch.testing.assert_close(rainbow.arc_cosine_kernel(S), rainbow.exact_kernel(S, "relu"))
    t = math.acos(0.3 / math.sqrt(2))
    expected = math.sqrt(2) / (2 * math.pi) * (math.sin(t) + (math.pi - t) * math.cos(t) - 1)
    assert float(rainbow.arc_cosine_kernel(S)[0, 1]) == pytest.approx(expected, rel=1e-13)


def deterministic_net():
    """Reference F: a small network without randomness."""
    row = lambda n: torch.arange(n, dtype=DTYPE)[:, None]  # noqa: E731
    column = lambda n: torch.arange(n, dtype=DTYPE)[None, :]  # noqa: E731
    W1 = torch.cos(1 + 6 * row(5) + column(6)) / math.sqrt(6)
    W2 = torch.sin(2 + 5 * row(4) + column(5)) / math.sqrt(5)
    V = torch.cos(3 + 2 * row(3) + column(6) ** 2) / math.sqrt(6)
    return W1, W2, V, torch.diag(1 / torch.arange(1, 7, dtype=DTYPE))


def test_reference_network_tanh():
    W1, W2, V, Omega0 = deterministic_net()
    result = rainbow.linearised_covariances([W1, W2], "tanh", Omega0, [V], ["sign"])
    first, second = result.layers
    assert (first.r, first.k1, first.kappa_star2) == pytest.approx(
        (0.2179896224, 0.8430127674, 0.002068432956), abs=1e-10
    )
    assert (second.r, second.k1, second.kappa_star2) == pytest.approx(
        (0.05970949448, 0.9464236969, 9.344523697e-05), abs=1e-10
    )
    theta = torch.tensor([1, -2, 0.5], dtype=DTYPE)
    psi = result.Phi @ theta / math.sqrt(3)
    numbers = (result.Omega.trace(), result.Omega[0, 1], psi @ psi, theta @ result.Psi @ theta / 3)
    assert [float(x) for x in numbers] == pytest.approx(
        [0.2143052124, 0.01945735071, 0.1054825996, 1.966181057], rel=1e-9
    )
    neuron = rainbow.linearised_covariances([W1, W2], "tanh", Omega0, mode="neuron").Omega
    assert (float(neuron.trace()), float(neuron[0, 1])) == pytest.approx(
        (0.2091627876, 0.01791307214), rel=1e-9
    )


def test_reference_network_erf_and_its_kernels():
    W1, W2, V, Omega0 = deterministic_net()
    result = rainbow.linearised_covariances([W1, W2], ["erf", "erf"], Omega0, [V], "sign")
    psi = result.Phi @ torch.tensor([1, -2, 0.5], dtype=DTYPE) / math.sqrt(3)
    assert [float(result.Omega.trace()), float(result.Omega[0, 1]), float(psi @ psi)] == pytest.approx(
        [0.3321807631, 0.03016007561, 0.1627398749], rel=1e-9
    )
    S, T = W1 @ Omega0 @ W1.T, V @ Omega0 @ V.T
    assert float(rainbow.arcsine_kernel(S, "erf")[0, 1]) == pytest.approx(0.1599535233, rel=1e-9)
    assert float(rainbow.arcsine_kernel(S, "sign")[0, 1]) == pytest.approx(0.7999376822, rel=1e-9)
    cross = rainbow.cross_kernel(W1 @ Omega0 @ V.T, S.diagonal(), T.diagonal(), "erf", "sign")
    assert float(cross[0, 0]) == pytest.approx(-0.2075562615, rel=1e-9)


def rows(p, d, seed):
    return torch.randn(p, d, generator=generator(seed), dtype=DTYPE) / math.sqrt(d)


def test_one_layer_approaches_the_exact_kernel():
    """The absolute error of the mean form stays, that of the neuron form falls; without κ*² it grows."""
    errors, refined, without = [], [], []
    for d in (100, 400):
        W = rows(d, d, d)
        exact = rainbow.exact_kernel(W @ W.T, "erf")
        result = rainbow.linearised_covariances([W], "erf", torch.eye(d, dtype=DTYPE))
        errors.append(float((exact - result.Omega).norm()))
        neuron = rainbow.linearised_covariances([W], "erf", torch.eye(d, dtype=DTYPE), mode="neuron")
        refined.append(float((exact - neuron.Omega).norm()))
        without.append(float((exact - result.layers[0].k1 ** 2 * W @ W.T).norm()))
    assert max(errors) < 0.7
    assert errors[1] < 1.3 * errors[0]
    assert refined[1] < 0.1 * errors[1]
    assert without[1] > 1.5 * without[0]  # κ*² √d


def test_paired_rows_need_the_cross_coefficient():
    d = 300
    W, U = rows(d, d, 1), rows(d, d, 2)
    V, identity = 0.8 * W + 0.6 * U, torch.eye(d, dtype=DTYPE)
    exact = rainbow.cross_kernel(W @ V.T, (W @ W.T).diagonal(), (V @ V.T).diagonal(), "erf", "erf")
    with_pairs, without, neuron = (
        rainbow.linearised_covariances([W], "erf", identity, [V], "erf", mode, paired)
        for mode, paired in (("mean", None), ("mean", False), ("neuron", True))
    )
    assert with_pairs.cross[0] == pytest.approx(0.0184, abs=2e-3)
    assert without.cross == (0.0,)
    near, far, refined = (float((exact - x.Phi).norm()) for x in (with_pairs, without, neuron))
    assert far**2 - near**2 == pytest.approx(d * with_pairs.cross[0] ** 2, rel=0.3)
    assert refined < 0.1 * near
    torch.testing.assert_close(neuron.Phi.diagonal(), exact.diagonal(), rtol=1e-12, atol=0)


def test_independent_rows_of_equal_width_are_told_by_themselves():
    d = 200
    W, V, identity = rows(d, d, 3), rows(d, d, 4), torch.eye(d, dtype=DTYPE)
    result = rainbow.linearised_covariances([W], "tanh", identity, [V], "tanh")
    assert abs(result.cross[0]) < 1e-5


@pytest.mark.parametrize("mode", ["mean", "neuron"])
def test_teacher_equal_to_student_gives_three_equal_covariances(mode):
    Ws = [rows(7, 5, 5), rows(6, 7, 6)]
    result = rainbow.linearised_covariances(Ws, "tanh", torch.eye(5), Ws, "tanh", mode)
    torch.testing.assert_close(result.Phi, result.Omega, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(result.Psi, result.Omega, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("mode", ["mean", "neuron"])
def test_the_deeper_network_continues_alone(mode):
    Ws, V = [rows(7, 5, 5), rows(6, 7, 6), rows(4, 6, 7)], rows(3, 5, 8)
    deep = rainbow.linearised_covariances(Ws, "erf", torch.eye(5), [V], "sign", mode)
    one = rainbow.linearised_covariances(Ws[:1], "erf", torch.eye(5), [V], "sign", mode)
    k1 = [torch.as_tensor(layer.k1, dtype=DTYPE).reshape(-1, 1) for layer in deep.layers]
    torch.testing.assert_close(deep.Phi, k1[2] * (Ws[2] @ (k1[1] * (Ws[1] @ one.Phi))))
    mirrored = rainbow.linearised_covariances([V], "sign", torch.eye(5), Ws, "erf", mode)
    torch.testing.assert_close(mirrored.Phi, deep.Phi.T)
    torch.testing.assert_close(mirrored.Psi, deep.Omega)
    linear = rainbow.linearised_covariances(Ws[:1], "erf", torch.eye(5), (), None, mode)
    torch.testing.assert_close(linear.Phi, k1[0] * Ws[0])
    torch.testing.assert_close(linear.Psi, torch.eye(5, dtype=DTYPE))


def test_equivalent_linear_network_has_the_covariance():
    Ws = [rows(7, 5, 5), rows(6, 7, 6), rows(4, 6, 7)]
    Omega0 = torch.diag(torch.arange(1.0, 6.0, dtype=DTYPE))
    W, C = rainbow.equivalent_linear_network(Ws, ["tanh", "relu", "sign"], Omega0)
    Omega = rainbow.linearised_covariances(Ws, ["tanh", "relu", "sign"], Omega0).Omega
    torch.testing.assert_close(W @ Omega0 @ W.T + C, Omega)
    assert float(torch.linalg.eigvalsh(C).min()) > 0


def test_inputs_of_any_kind_and_no_argument_is_changed():
    W, Omega0 = rows(4, 3, 1), torch.eye(3, dtype=DTYPE)
    before = W.clone(), Omega0.clone()
    expected = rainbow.linearised_covariances([W], "erf", Omega0, [W], "erf").Phi
    for given_W, given_Omega in ((W.numpy(), Omega0.numpy()), (W.tolist(), Omega0.tolist())):
        found = rainbow.linearised_covariances([given_W], ["erf"], given_Omega, [given_W], ["erf"]).Phi
        torch.testing.assert_close(found, expected)
    single = rainbow.linearised_covariances([W.float()], "erf", Omega0.float())
    assert single.Omega.dtype == DTYPE
    assert torch.equal(W, before[0])
    assert torch.equal(Omega0, before[1])


def test_sampled_rows_have_their_covariance_and_layers_may_depend():
    C1 = torch.diag(torch.tensor([4.0, 1.0, 0.25], dtype=DTYPE))
    seen = []

    def from_before(earlier):
        seen.append([w.shape for w in earlier])
        return earlier[0] @ earlier[0].T

    W1, W2, W3 = rainbow.sample_rainbow([C1, None, lambda e: e[1] @ e[1].T], (3, 4000, 5, 5), seed=1)
    torch.testing.assert_close(3 * W1.T @ W1 / 4000, C1, rtol=0.1, atol=0.15)
    assert float(W2.square().sum(1).mean()) == pytest.approx(1, rel=0.1)
    assert W3.shape == (5, 5)
    rainbow.sample_rainbow([None, from_before], (3, 4, 2), seed=0)
    assert seen == [[(4, 3)]]
    again = rainbow.sample_rainbow([C1], (3, 4000), seed=1)
    assert torch.equal(again[0], W1)


def test_symmetric_root():
    A = torch.randn(5, 3, generator=generator(0), dtype=DTYPE)
    C = A @ A.T  # rank 3: two eigenvalues are zero up to a sign
    root = rainbow.symmetric_root(C)
    torch.testing.assert_close(root @ root, C, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(root, root.T)


def test_surrogate_repeats_the_row_covariance_and_alignment_the_function():
    """With one informative direction the aligned surrogate's second layer correlates with the original."""
    W = rainbow.sample_rainbow([None, None], (12, 300, 200), seed=0)
    spike = torch.linalg.svd(W[0])[0][:, :1]
    W[1] = torch.randn(200, 1, generator=generator(5), dtype=DTYPE) @ spike.T
    x = torch.randn(4000, 12, generator=generator(9), dtype=DTYPE)
    quality = []
    for align in (True, False):
        new = rainbow.rainbow_surrogate(W, x, seed=3, align=align)
        assert [w.shape for w in new] == [w.shape for w in W]
        first = new[0].T @ new[0] / 300
        torch.testing.assert_close(first, W[0].T @ W[0] / 300, rtol=0, atol=0.04)
        old_direction = rainbow.features(W, "tanh", x)[1][:, 0]
        new_direction = rainbow.features(new, "tanh", x)[1][:, 0]
        quality.append(abs(float(torch.corrcoef(torch.stack([old_direction, new_direction]))[0, 1])))
    assert quality[0] > 0.8 > 0.5 > quality[1]


def test_the_estimator_is_the_mean_over_pairs_and_unbiased():
    x = torch.randn(7, 3, generator=generator(2), dtype=DTYPE)
    y = torch.randn(7, 2, generator=generator(3), dtype=DTYPE)
    L = torch.tensor([[0.3, 0.1], [0.0, -0.2], [0.5, 0.0]], dtype=DTYPE)
    differences = [torch.outer(a, b) - L for a, b in zip(x, y, strict=True)]
    pairs = [float((differences[i] * differences[j]).sum()) for i in range(7) for j in range(7) if i != j]
    found = rainbow.covariance_error(x, L, y)
    assert found.squared == pytest.approx(np.mean(pairs))
    assert found.naive_squared == pytest.approx(float((x.T @ y / 7 - L).square().sum()))
    draws = [
        rainbow.covariance_error(
            torch.randn(40, 6, generator=generator(100 + s), dtype=DTYPE), 1.1 * torch.eye(6)
        )
        for s in range(400)
    ]
    values = np.array([draw.squared for draw in draws])
    assert abs(values.mean() - 6 * 0.01) < 4 * values.std() / 20  # unbiased
    assert values.std() == pytest.approx(np.mean([draw.noise for draw in draws]), rel=0.5)
    assert np.mean([draw.naive_squared for draw in draws]) > 10 * 6 * 0.01  # its own 42/40
    assert rainbow.CovarianceError(-0.04, 1.0, 0.1).error == pytest.approx(-0.2)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: rainbow.hermite_coefficients("tanh", 0.0), "r must be positive"),
        (lambda: rainbow.hermite_coefficients("tanh", [1.0, -2.0]), "r must be positive"),
        (lambda: rainbow.hermite_coefficients("tanh", math.nan), "r must be finite"),
        (lambda: rainbow.hermite_coefficients("gelu", 1.0), "activation must be a function or one of"),
        (lambda: rainbow.hermite_coefficients(lambda x: x.sum(), 1.0), "activation must map a tensor"),
        (lambda: rainbow.joint_moment("erf", "erf", 1, 1, 1.1), "rc must satisfy"),
        (lambda: rainbow.exact_kernel(torch.eye(2), "tanh"), "activation must be one of"),
        (lambda: rainbow.arcsine_kernel(torch.eye(2), "relu"), "arcsine kernel"),
        (lambda: rainbow.exact_kernel([[1.0, 2.0], [2.0, 1.0]], "erf"), "must not exceed"),
        (lambda: rainbow.exact_kernel([[1.0, 0.2], [0.1, 1.0]], "erf"), "S must be symmetric"),
        (lambda: rainbow.exact_kernel(torch.zeros(0, 0), "erf"), "S must be a square matrix"),
        (
            lambda: rainbow.cross_kernel(torch.zeros(2, 3), [1, 1], [1, 1], "erf", "erf"),
            "covariance must have",
        ),
        (lambda: rainbow.cross_kernel([[0.1]], [0.0], [1.0], "erf", "erf"), "variances must be positive"),
        (
            lambda: rainbow.linearised_covariances([torch.eye(2)], "erf", torch.eye(3)),
            "weights must be matrices",
        ),
        (
            lambda: rainbow.linearised_covariances(torch.eye(2), "erf", torch.eye(2)),
            "weights must be a sequence",
        ),
        (
            lambda: rainbow.linearised_covariances([torch.eye(2)], ["erf", "erf"], torch.eye(2)),
            "activations must",
        ),
        (
            lambda: rainbow.linearised_covariances([torch.eye(2)], "erf", torch.eye(2), mode="max"),
            "mode must be",
        ),
        (
            lambda: rainbow.linearised_covariances([torch.zeros(2, 2)], "erf", torch.eye(2)),
            "positive variance",
        ),
        (
            lambda: rainbow.linearised_covariances([torch.eye(2)], "erf", torch.eye(2), [torch.eye(2)]),
            "teacher_activations must be given",
        ),
        (
            lambda: rainbow.linearised_covariances(
                [torch.eye(2)], "erf", torch.eye(2), [torch.ones(1, 2)], "erf", paired=True
            ),
            "paired must be False",
        ),
        (
            lambda: rainbow.linearised_covariances([torch.eye(2)], "erf", [[1.0, 1], [0, 1]]),
            "Omega0 must be symm",
        ),
        (lambda: rainbow.features([torch.eye(2)], "erf", [1.0, 2.0]), "inputs must have shape"),
        (lambda: rainbow.sample_rainbow([None], (3,), 0), "widths must be one more"),
        (lambda: rainbow.sample_rainbow([None], (3, 0), 0), "widths must be positive"),
        (lambda: rainbow.sample_rainbow([torch.eye(2)], (3, 2), 0), r"covariances\[0\] must have shape"),
        (lambda: rainbow.sample_rainbow([-torch.eye(3)], (3, 2), 0), "positive semidefinite"),
        (lambda: rainbow.covariance_error([[1.0, 2.0]], torch.eye(2)), "at least two samples"),
        (lambda: rainbow.covariance_error(torch.ones(3, 2), torch.eye(3)), "candidate must have shape"),
    ],
)
def test_bad_input_is_named(call, words):
    with pytest.raises(ValueError, match=words):
        call()
