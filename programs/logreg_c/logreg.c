/* Logistic regression by mini-batch stochastic gradient descent, as a federated-learning program.
 *
 * In:  /in/model.json {"w": [n numbers], "b": number}, /in/dataset.json {"data": [{"x": [n numbers], "y": 0 or 1}, ...]} and
 *      /in/hyperparams.json {"epochs": 1, "lr": 0.01, "batch_size": 16, "l2": 0, "seed": 0, "log_samples": 0}
 *      (the defaults); or the same in the variables MODEL_DATA, DATASET_DATA and HYPERPARAMS, where those are set. Also ROUND_ID, PROPLET_ID, MODEL_URI and FL_MODE
 *      (train or evaluate).
 * Out: one JSON document on standard output; a log on standard error.
 *
 * Minimises mean log loss + l2/2 |w|^2 (b is not penalised); the losses reported are without the penalty. The order of
 * samples depends on the seed and the base model's reference alone, and not on ids that differ from run to run: the same
 * data, model and seed give the same update, to the last bit.
 */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "json.h"

enum { SHOWN = 64, KEY = 16 }; /* numbers of a vector in a log line; room for a key */

typedef struct {
    double *w, b;
    size_t n;
} Model;

typedef struct {
    double *x; /* one sample's n numbers after another's */
    unsigned char *y;
    size_t rows, n;
} Dataset;

typedef struct {
    double epochs, lr, batch_size, l2, seed, log_samples;
} Hyperparams;

typedef struct {
    double loss, accuracy;
} Fit;

static const char *variable(const char *name) {
    const char *value = getenv(name);
    return value ? value : "";
}

/* ---- reading ---- */

/* A small document is in a variable, too: what is in memory already is not read from a file. */
static bool open_input(Json *json, const char *path, const char *name) {
    const char *text = variable(name);
    if (!*text) return json_open_file(json, path, path);
    json_open_text(json, text, name);
    return true;
}

/* An array of numbers, appended to a growing array. */
static void read_vector(Json *json, double **values, size_t *count, size_t *room, const char *what) {
    for (json_enter(json, '['); json_more(json, ']');) {
        if (*count == *room) {
            *room = *room ? *room + *room / 2 : 64;
            *values = grow(*values, *room, sizeof(double));
        }
        (*values)[(*count)++] = json_number(json, what);
    }
}

static Model read_model(void) {
    Json json;
    if (!open_input(&json, "/in/model.json", "MODEL_DATA"))
        fail("no model: there is neither /in/model.json nor MODEL_DATA");
    Model model = {0};
    size_t room = 0;
    bool has_w = false, has_b = false;
    char key[KEY];
    for (json_enter(&json, '{'); json_more(&json, '}');) {
        json_key(&json, key, sizeof key);
        if (!strcmp(key, "w") && !has_w) {
            read_vector(&json, &model.w, &model.n, &room, "w");
            has_w = true;
        } else if (!strcmp(key, "b") && !has_b) {
            model.b = json_number(&json, "b");
            has_b = true;
        } else if (!strcmp(key, "version")) {
            json_skip(&json);
        } else {
            fail("model: this program trains one w and one b; the model has \"%s\"", key);
        }
    }
    json_close(&json);
    if (!has_w || !has_b) fail("model: it must be {\"w\": [numbers], \"b\": number}");
    if (!model.n) fail("model: w is empty");
    return model;
}

static unsigned char read_label(Json *json, size_t row) {
    double y = json_number(json, "y");
    if (y != 0 && y != 1) fail("dataset: y of sample %zu is %g; labels are 0 or 1", row, y);
    return y == 1;
}

static void read_sample(Json *json, Dataset *data, size_t *x_room, size_t *y_room) {
    size_t before = data->rows * data->n, count = before, row = data->rows;
    bool has_x = false, has_y = false;
    char key[KEY];
    if (row == *y_room) {
        *y_room = *y_room ? *y_room * 2 : 256;
        data->y = grow(data->y, *y_room, 1);
    }
    for (json_enter(json, '{'); json_more(json, '}');) {
        json_key(json, key, sizeof key);
        if (!strcmp(key, "x") && !has_x) {
            read_vector(json, &data->x, &count, x_room, "x");
            has_x = true;
        } else if (!strcmp(key, "y") && !has_y) {
            data->y[row] = read_label(json, row);
            has_y = true;
        } else {
            json_skip(json);
        }
    }
    if (!has_x || !has_y) fail("dataset: sample %zu has no %s", row, has_x ? "y" : "x");
    if (count - before != data->n)
        fail("dataset: x of sample %zu has %zu numbers; w of the model has %zu", row, count - before, data->n);
    data->rows++;
}

static Dataset read_dataset(size_t n) {
    Json json;
    if (!open_input(&json, "/in/dataset.json", "DATASET_DATA"))
        fail("no dataset: there is neither /in/dataset.json nor DATASET_DATA");
    Dataset data = {.n = n};
    size_t x_room = 0, y_room = 0;
    bool has_data = false;
    char key[KEY];
    for (json_enter(&json, '{'); json_more(&json, '}');) {
        json_key(&json, key, sizeof key);
        if (!strcmp(key, "data") && !has_data) {
            for (json_enter(&json, '['); json_more(&json, ']');) read_sample(&json, &data, &x_room, &y_room);
            has_data = true;
        } else {
            json_skip(&json);
        }
    }
    json_close(&json);
    if (!has_data) fail("dataset: it must be {\"data\": [{\"x\": [numbers], \"y\": 0 or 1}, ...]}");
    if (!data.rows) fail("dataset: it has no samples");
    return data;
}

static Hyperparams read_hyperparams(void) {
    Hyperparams given = {.epochs = 1, .lr = 0.01, .batch_size = 16};
    const char *names[] = {"epochs", "lr", "batch_size", "l2", "seed", "log_samples"};
    double *fields[] = {&given.epochs, &given.lr, &given.batch_size, &given.l2, &given.seed, &given.log_samples};
    Json json;
    if (open_input(&json, "/in/hyperparams.json", "HYPERPARAMS") && !json_null(&json)) {
        char key[KEY];
        for (json_enter(&json, '{'); json_more(&json, '}');) {
            json_key(&json, key, sizeof key);
            double *field = NULL;
            for (size_t i = 0; i < sizeof names / sizeof *names; i++)
                if (!strcmp(key, names[i])) field = fields[i];
            if (field) {
                *field = json_number(&json, key);
            } else {
                fprintf(stderr, "warning: hyperparameter '%s' is not known to this program and changes nothing\n", key);
                json_skip(&json);
            }
        }
        json_close(&json);
    }
    if (given.epochs < 1 || given.epochs > 1e6 || given.epochs != floor(given.epochs))
        fail("hyperparams: epochs is %g; it must be a whole number from 1 to 1000000", given.epochs);
    if (!(given.lr > 0)) fail("hyperparams: lr is %g; it must be above 0", given.lr);
    if (given.batch_size < 0 || given.batch_size != floor(given.batch_size))
        fail("hyperparams: batch_size is %g; it must be a whole number, 0 for all samples", given.batch_size);
    if (given.l2 < 0) fail("hyperparams: l2 is %g; it must not be negative", given.l2);
    if (fabs(given.seed) > 9007199254740992.0 || given.seed != floor(given.seed))
        fail("hyperparams: seed is %g; it must be a whole number", given.seed);
    return given;
}

/* ---- the order of samples ---- */

/* FNV-1a (Fowler, Noll, Vo), 64 bits. */
static uint64_t hash(uint64_t state, const void *bytes, size_t count) {
    const unsigned char *at = bytes;
    while (count--) state = (state ^ *at++) * 0x100000001B3u;
    return state;
}

static uint64_t seed_of(const Hyperparams *given) {
    int64_t seed = (int64_t)given->seed;
    const char *base = variable("MODEL_URI");
    uint64_t state = hash(0xCBF29CE484222325u, &seed, sizeof seed);
    return hash(state, base, strlen(base));
}

/* SplitMix64 (Steele, Lea and Flood, 2014). */
static uint64_t next_random(uint64_t *state) {
    uint64_t z = (*state += 0x9E3779B97F4A7C15u);
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
}

/* Fisher-Yates; the high half of a product maps 32 random bits to 0..i with a bias below i / 2^32. */
static void shuffle(uint32_t *order, size_t count, uint64_t *state) {
    for (size_t i = count - 1; i > 0; i--) {
        size_t j = (size_t)(((next_random(state) >> 32) * (uint64_t)(i + 1)) >> 32);
        uint32_t kept = order[i];
        order[i] = order[j];
        order[j] = kept;
    }
}

/* ---- learning ---- */

static double logit(const Model *model, const double *x) {
    double sum = model->b;
    for (size_t i = 0; i < model->n; i++) sum += model->w[i] * x[i];
    return sum;
}

/* Mean log loss, log(1 + e^z) - y z, in the form that neither overflows nor loses digits. */
static Fit measure(const Model *model, const Dataset *data) {
    Fit fit = {0};
    for (size_t row = 0; row < data->rows; row++) {
        double z = logit(model, data->x + row * data->n), y = data->y[row];
        fit.loss += (z > 0 ? z : 0) - y * z + log1p(exp(-fabs(z)));
        fit.accuracy += (z > 0) == (y == 1);
    }
    fit.loss /= (double)data->rows;
    fit.accuracy /= (double)data->rows;
    return fit;
}

static bool is_finite(const Model *model) {
    bool finite = isfinite(model->b);
    for (size_t i = 0; i < model->n; i++) finite = finite && isfinite(model->w[i]);
    return finite;
}

/* Returns how many steps were done. */
static size_t train(Model *model, const Dataset *data, const Hyperparams *given) {
    size_t rows = data->rows, batch = rows;
    if (given->batch_size > 0 && given->batch_size < (double)rows) batch = (size_t)given->batch_size;
    uint64_t random = seed_of(given);
    uint32_t *order = grow(NULL, rows, sizeof *order);
    double *gradient = grow(NULL, model->n, sizeof *gradient);
    for (size_t row = 0; row < rows; row++) order[row] = (uint32_t)row;
    size_t steps = 0;
    for (size_t epoch = 0; epoch < (size_t)given->epochs; epoch++) {
        shuffle(order, rows, &random);
        for (size_t start = 0, size; start < rows; start += size) {
            size = rows - start < batch ? rows - start : batch;
            double gradient_b = 0;
            memset(gradient, 0, model->n * sizeof *gradient);
            for (size_t k = start; k < start + size; k++) {
                const double *x = data->x + order[k] * model->n;
                double error = 1 / (1 + exp(-logit(model, x))) - data->y[order[k]];
                for (size_t i = 0; i < model->n; i++) gradient[i] += error * x[i];
                gradient_b += error;
            }
            for (size_t i = 0; i < model->n; i++)
                model->w[i] -= given->lr * (gradient[i] / (double)size + given->l2 * model->w[i]);
            model->b -= given->lr * gradient_b / (double)size;
            steps++;
        }
        if (!is_finite(model))
            fail("training diverged in epoch %zu: the model is not finite; use a smaller lr than %g", epoch + 1,
                 given->lr);
    }
    return steps;
}

/* ---- writing ---- */

static void print_string(const char *text) {
    putchar('"');
    for (; *text; text++) {
        if (*text == '"' || *text == '\\') putchar('\\');
        if ((unsigned char)*text < 0x20)
            printf("\\u%04x", *text);
        else
            putchar(*text);
    }
    putchar('"');
}

/* 17 significant digits read back as the same number. */
static void print_model(FILE *out, const Model *model, size_t shown) {
    fprintf(out, "{\"w\":[");
    for (size_t i = 0; i < shown && i < model->n; i++) fprintf(out, "%s%.17g", i ? "," : "", model->w[i]);
    fprintf(out, "%s],\"b\":%.17g}", shown < model->n ? ",..." : "", model->b);
}

static void print_head(size_t samples) {
    const char *names[] = {"round_id", "ROUND_ID", "proplet_id", "PROPLET_ID", "base_model_uri", "MODEL_URI"};
    for (size_t i = 0; i < 6; i += 2) {
        printf("%s\"%s\":", i ? "," : "{", names[i]);
        print_string(variable(names[i + 1]));
    }
    printf(",\"num_samples\":%zu,\"metrics\":", samples);
}

static void log_vector(const char *before, const double *values, size_t count) {
    fprintf(stderr, "%s[", before);
    for (size_t i = 0; i < count && i < SHOWN; i++) fprintf(stderr, "%s%f", i ? ", " : "", values[i]);
    fprintf(stderr, "%s]", count > SHOWN ? ", ..." : "");
}

static void log_model(const char *before, const Model *model) {
    log_vector(before, model->w, model->n);
    fprintf(stderr, ", b: %f\n", model->b);
}

int main(void) {
    static char buffer[1 << 13];
    setvbuf(stderr, buffer, _IOLBF, sizeof buffer); /* a write a line, not a number */
    const char *mode = variable("FL_MODE");
    bool evaluates = !strcmp(mode, "evaluate");
    if (!*variable("ROUND_ID")) fail("ROUND_ID is not set: this program runs as a task of a round");
    if (!*variable("PROPLET_ID")) fail("PROPLET_ID is not set");
    if (*mode && !evaluates && strcmp(mode, "train")) fail("FL_MODE is %s; it must be train or evaluate", mode);

    Hyperparams given = read_hyperparams();
    Model model = read_model();
    Dataset data = read_dataset(model.n);
    fprintf(stderr, "Loaded dataset with %zu samples from Local Data Store\n", data.rows);
    log_model("DEBUG: Initial model - w: ", &model);
    if (given.log_samples) { /* samples stay on the device, and out of its log, unless asked for */
        log_vector("DEBUG: First sample - x: ", data.x, data.n);
        fprintf(stderr, ", y: %d\n", data.y[0]);
    }

    Fit before = measure(&model, &data), after = before;
    size_t steps = 0;
    if (!evaluates) {
        steps = train(&model, &data, &given);
        after = measure(&model, &data);
    }
    if (!isfinite(after.loss)) fail("the loss is not finite; use a smaller lr than %g", given.lr);
    print_head(data.rows);
    if (evaluates) {
        printf("{\"loss\":%.17g,\"accuracy\":%.17g}}\n", after.loss, after.accuracy);
        return 0;
    }
    log_model("DEBUG: Final model after training - w: ", &model);
    fprintf(stderr, "DEBUG: Update payload: ");
    print_model(stderr, &model, SHOWN);
    fprintf(stderr, "\nloss %.6f -> %.6f, accuracy %.4f -> %.4f\n", before.loss, after.loss, before.accuracy,
            after.accuracy);
    printf("{\"loss\":%.17g,\"accuracy\":%.17g,\"loss_before\":%.17g,\"accuracy_before\":%.17g},\"steps\":%zu,\"update\":",
           after.loss, after.accuracy, before.loss, before.accuracy, steps);
    print_model(stdout, &model, model.n);
    printf("}\n");
    if (fflush(stdout)) fail("the result cannot be written");
    return 0;
}
