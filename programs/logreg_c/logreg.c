/* Logistic regression by mini-batch stochastic gradient descent, as a Propeller program (docs/programs.md).
 *
 * Given: a model {"w": [n numbers], "b": number}, a dataset {"data": [{"x": [n numbers], "y": 0 or 1}, ...]} and hyperparameters
 * {"epochs": 1, "lr": 0.01, "batch_size": 16, "l2": 0, "seed": 0}. Gives back the model after local training, with the mean log loss and the
 * accuracy on the local data before and after. The same inputs give the same update, to the last bit: records are shuffled by a generator that
 * is seeded with the hyperparameter and the base model's reference. */
#include <math.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "json.h"

enum { SHOWN = 8 }; /* numbers of a vector that a log line shows */

typedef struct {
    double *at;
    size_t count, room;
} Numbers;

typedef struct {
    Numbers w;
    double b;
    bool has_w, has_b;
} Model;

typedef struct {
    Numbers x, y; /* x: one record after another */
    size_t features;
    bool has_data, has_x, has_y;
} Data;

typedef struct {
    double epochs, lr, batch_size, l2, seed;
} Hyperparameters;

typedef struct {
    double loss, accuracy;
} Score;

_Noreturn void fail(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    fputs("error: ", stderr);
    vfprintf(stderr, format, arguments);
    fputc('\n', stderr);
    va_end(arguments);
    exit(1);
}

static void *memory(void *old, size_t bytes) {
    void *got = realloc(old, bytes ? bytes : 1);
    if (!got) fail("out of memory: %zu bytes are needed", bytes);
    return got;
}

static void append(Numbers *numbers, double value) {
    if (numbers->count == numbers->room) {
        numbers->room = numbers->room ? 2 * numbers->room : 64;
        numbers->at = memory(numbers->at, numbers->room * sizeof(double));
    }
    numbers->at[numbers->count++] = value;
}

/* ---- What is given ---- */

static const char *variable(const char *name) {
    const char *value = getenv(name);
    return value ? value : "";
}

/* The text of a file in /in, or of an environment variable where a runtime gives no files; false if there is neither. */
static bool open_input(Json *json, const char *what, const char *path, const char *name) {
    json->what = what;
    FILE *file = fopen(path, "rb");
    if (!file) {
        json->at = variable(name);
        json->end = json->at + strlen(json->at);
        return json->at < json->end;
    }
    size_t size = 0, room = 1 << 16;
    char *text = memory(NULL, room);
    for (size_t got; (got = fread(text + size, 1, room - size, file)) > 0;) {
        size += got;
        if (size == room) text = memory(text, room *= 2);
    }
    if (ferror(file)) fail("%s: %s cannot be read", what, path);
    fclose(file);
    json->at = text;
    json->end = text + size;
    return true;
}

static void element(Json *json, void *numbers) { append(numbers, json_number(json)); }

static void model_member(Json *json, const char *key, void *context) {
    Model *model = context;
    if (!strcmp(key, "w")) {
        model->has_w = true;
        json_array(json, element, &model->w);
    } else if (!strcmp(key, "b")) {
        model->has_b = true;
        model->b = json_number(json);
    } else if (!strcmp(key, "version")) {
        json_skip(json);
    } else {
        fail("model: this program trains 'w' and 'b', not '%s'", key);
    }
}

static void record_member(Json *json, const char *key, void *context) {
    Data *data = context;
    if (!strcmp(key, "x")) {
        data->has_x = true;
        json_array(json, element, &data->x);
    } else if (!strcmp(key, "y")) {
        data->has_y = true;
        double label = json_number(json);
        if (label != 0 && label != 1) fail("dataset: record %zu has label %g; labels must be 0 or 1", data->y.count, label);
        append(&data->y, label);
    } else {
        json_skip(json);
    }
}

static void record(Json *json, void *context) {
    Data *data = context;
    size_t before = data->x.count, number = data->y.count;
    data->has_x = data->has_y = false;
    json_object(json, record_member, data);
    size_t features = data->x.count - before;
    if (!data->has_x || !data->has_y || data->y.count != number + 1) fail("dataset: record %zu needs one 'x' and one 'y'", number);
    if (number == 0) data->features = features;
    if (features != data->features) fail("dataset: record %zu has %zu features, the first has %zu", number, features, data->features);
}

static void data_member(Json *json, const char *key, void *context) {
    Data *data = context;
    if (strcmp(key, "data")) {
        json_skip(json);
        return;
    }
    data->has_data = true;
    json_array(json, record, data);
}

static void hyperparameter(Json *json, const char *key, void *context) {
    Hyperparameters *given = context;
    if (!strcmp(key, "epochs")) given->epochs = json_number(json);
    else if (!strcmp(key, "lr")) given->lr = json_number(json);
    else if (!strcmp(key, "batch_size")) given->batch_size = json_number(json);
    else if (!strcmp(key, "l2")) given->l2 = json_number(json);
    else if (!strcmp(key, "seed")) given->seed = json_number(json);
    else json_skip(json);
}

static Model read_model(void) {
    Json json;
    Model model = {0};
    if (!open_input(&json, "model", "/in/model.json", "MODEL_DATA")) fail("model: there is neither /in/model.json nor MODEL_DATA");
    json_object(&json, model_member, &model);
    json_end(&json);
    if (!model.has_w || !model.has_b) fail("model: 'w' and 'b' are needed, as {\"w\": [0, 0, 0], \"b\": 0}");
    return model;
}

static Data read_data(void) {
    Json json;
    Data data = {0};
    if (!open_input(&json, "dataset", "/in/dataset.json", "DATASET_DATA")) fail("dataset: there is neither /in/dataset.json nor DATASET_DATA");
    json_object(&json, data_member, &data);
    json_end(&json);
    if (!data.has_data || data.y.count == 0) fail("dataset: 'data' holds no records");
    return data;
}

static Hyperparameters read_hyperparameters(void) {
    Json json;
    Hyperparameters given = {.epochs = 1, .lr = 0.01, .batch_size = 16};
    if (open_input(&json, "hyperparams", "/in/hyperparams.json", "HYPERPARAMS")) {
        json_object(&json, hyperparameter, &given);
        json_end(&json);
    }
    if (given.epochs < 1 || given.epochs > 1e6 || given.epochs != floor(given.epochs)) fail("hyperparams: epochs must be an integer from 1 to 1000000, not %g", given.epochs);
    if (given.batch_size < 1 || given.batch_size > 1e9 || given.batch_size != floor(given.batch_size)) fail("hyperparams: batch_size must be an integer from 1, not %g", given.batch_size);
    if (given.lr <= 0) fail("hyperparams: lr must be above 0, not %g", given.lr);
    if (given.l2 < 0) fail("hyperparams: l2 must be 0 or above, not %g", given.l2);
    if (given.seed != floor(given.seed) || fabs(given.seed) > 9007199254740992.0) fail("hyperparams: seed must be an integer, not %g", given.seed);
    return given;
}

/* ---- Learning ---- */

static double logit(const Model *model, const double *x, size_t features) {
    double sum = model->b;
    for (size_t i = 0; i < features; i++) sum += model->w.at[i] * x[i];
    return sum;
}

static Score score(const Model *model, const Data *data) {
    double loss = 0, right = 0;
    for (size_t n = 0; n < data->y.count; n++) {
        double z = logit(model, data->x.at + n * data->features, data->features), y = data->y.at[n];
        /* log(1 + exp(z)) - y z, without overflow for large |z| */
        loss += (z > 0 ? z : 0) - y * z + log1p(exp(-fabs(z)));
        right += (z > 0) == (y == 1);
    }
    return (Score){loss / (double)data->y.count, right / (double)data->y.count};
}

/* SplitMix64 (Steele, Lea and Flood, Fast Splittable Pseudorandom Number Generators, 2014). */
static uint64_t next_random(uint64_t *state) {
    uint64_t z = (*state += 0x9e3779b97f4a7c15ull);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return z ^ (z >> 31);
}

/* FNV-1a, 64 bits. */
static uint64_t hash(const char *text) {
    uint64_t value = 0xcbf29ce484222325ull;
    for (; *text; text++) value = (value ^ (unsigned char)*text) * 0x100000001b3ull;
    return value;
}

static void shuffle(size_t *order, size_t count, uint64_t *state) {
    for (size_t i = count; i > 1; i--) {
        size_t j = (size_t)(next_random(state) % i), kept = order[i - 1];
        order[i - 1] = order[j];
        order[j] = kept;
    }
}

static void train(Model *model, const Data *data, const Hyperparameters *with) {
    size_t features = data->features, count = data->y.count, batch = (size_t)with->batch_size;
    double *gradient = memory(NULL, features * sizeof *gradient);
    size_t *order = memory(NULL, count * sizeof *order);
    uint64_t state = (uint64_t)(int64_t)with->seed ^ hash(variable("MODEL_URI"));
    for (size_t n = 0; n < count; n++) order[n] = n;
    for (size_t epoch = 0; epoch < (size_t)with->epochs; epoch++) {
        shuffle(order, count, &state);
        for (size_t start = 0; start < count; start += batch) {
            size_t size = count - start < batch ? count - start : batch;
            double bias = 0;
            memset(gradient, 0, features * sizeof *gradient);
            for (size_t n = start; n < start + size; n++) {
                const double *x = data->x.at + order[n] * features;
                double error = 1 / (1 + exp(-logit(model, x, features))) - data->y.at[order[n]];
                for (size_t i = 0; i < features; i++) gradient[i] += error * x[i];
                bias += error;
            }
            for (size_t i = 0; i < features; i++) model->w.at[i] -= with->lr * (gradient[i] / (double)size + with->l2 * model->w.at[i]);
            model->b -= with->lr * bias / (double)size;
        }
    }
    bool finite = isfinite(model->b);
    for (size_t i = 0; i < features; i++) finite = finite && isfinite(model->w.at[i]);
    if (!finite) fail("training diverged: the weights are not finite; use a smaller lr than %g", with->lr);
}

/* ---- What is given back ---- */

static void print_string(const char *text) {
    putchar('"');
    for (; *text; text++) {
        if (*text == '"' || *text == '\\') putchar('\\');
        if ((unsigned char)*text < 0x20) printf("\\u%04x", *text);
        else putchar(*text);
    }
    putchar('"');
}

static void print_numbers(const Numbers *numbers) {
    putchar('[');
    for (size_t i = 0; i < numbers->count; i++) printf("%s%.17g", i ? "," : "", numbers->at[i]);
    putchar(']');
}

static void log_numbers(const double *at, size_t count) {
    fputc('[', stderr);
    for (size_t i = 0; i < count && i < SHOWN; i++) fprintf(stderr, "%s%f", i ? ", " : "", at[i]);
    fputs(count > SHOWN ? ", ...]" : "]", stderr);
}

static void log_model(const char *title, const Model *model) {
    fprintf(stderr, "DEBUG: %s - w: ", title);
    log_numbers(model->w.at, model->w.count);
    fprintf(stderr, ", b: %f\n", model->b);
}

static void print_result(const Model *model, const Data *data, Score before, const Score *after) {
    printf("{\"round_id\":");
    print_string(variable("ROUND_ID"));
    printf(",\"proplet_id\":");
    print_string(variable("PROPLET_ID"));
    printf(",\"base_model_uri\":");
    print_string(variable("MODEL_URI"));
    printf(",\"num_samples\":%zu,\"metrics\":{", data->y.count);
    if (after) {
        printf("\"loss\":%.17g,\"accuracy\":%.17g,\"loss_before\":%.17g,\"accuracy_before\":%.17g}", after->loss, after->accuracy, before.loss, before.accuracy);
        printf(",\"update\":{\"w\":");
        print_numbers(&model->w);
        printf(",\"b\":%.17g}", model->b);
    } else {
        printf("\"loss\":%.17g,\"accuracy\":%.17g}", before.loss, before.accuracy);
    }
    puts("}");
    if (fflush(stdout)) fail("the result cannot be written");
}

int main(void) {
    if (!*variable("ROUND_ID")) fail("ROUND_ID is not set: this program runs as a task of a round");
    Model model = read_model();
    Data data = read_data();
    if (data.features != model.w.count) fail("model: 'w' has %zu numbers, but the records have %zu features", model.w.count, data.features);
    fprintf(stderr, "Loaded dataset with %zu samples from Local Data Store\n", data.y.count);
    log_model("Initial model", &model);
    fputs("DEBUG: First sample - x: ", stderr);
    log_numbers(data.x.at, data.features);
    fprintf(stderr, ", y: %g\n", data.y.at[0]);
    Score before = score(&model, &data);
    if (!strcmp(variable("FL_MODE"), "evaluate")) {
        print_result(&model, &data, before, NULL);
        return 0;
    }
    Hyperparameters with = read_hyperparameters();
    train(&model, &data, &with);
    Score after = score(&model, &data);
    log_model("Final model after training", &model);
    log_model("Update payload", &model);
    fprintf(stderr, "loss %.6f -> %.6f, accuracy %.4f -> %.4f\n", before.loss, after.loss, before.accuracy, after.accuracy);
    print_result(&model, &data, before, &after);
    return 0;
}
