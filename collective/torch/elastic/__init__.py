"""What training needs that ranks may leave and join: today the samples that are left."""

from collective.torch.elastic.sampler import ElasticSampler as ElasticSampler
